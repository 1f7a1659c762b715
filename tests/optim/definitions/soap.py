"""SOAP: arXiv 2409.11321, Algorithms 3 and 4, with the first step and the order of the authors' code: the first
gradient gives the basis alone, and columns are sorted before a power iteration. Blocks as in arXiv 2309.06497.
"""

# ruff: noqa: E501 (exact texts)
import numpy as np


def blocks(x, block_size):
    """Index pairs of the blocks of x as a matrix, row by row; none of vectors."""
    if x.ndim < 2 or min(x.shape[0], x[0].size if x.shape[0] else 0) < 2:
        return []
    parts = [np.array_split(np.arange(n), -(-n // block_size)) for n in (x.shape[0], x[0].size)]
    return [np.ix_(rows, columns) for rows in parts[0] for columns in parts[1]]


def initial(p, *, block_size, **_):
    states = {"exp_avg": np.zeros_like(p), "exp_avg_sq": np.zeros_like(p)}
    if sizes := [rows.size**2 + columns.size**2 for rows, columns in blocks(p, block_size)]:
        states |= {name: np.zeros((len(sizes), max(sizes))) for name in ("factors", "eigenbases")}
    return states


def squares(row, m, n):
    """The two square matrices in a row of small states."""
    return row[: m * m].reshape(m, m), row[m * m : m * m + n * n].reshape(n, n)


def with_diagonal(factor, eps):
    n = len(factor)
    start = factor / np.trace(factor) if np.trace(factor) > 0 else np.eye(n)
    return start + np.diag(np.linspace(2 * eps, eps, n))


def first_basis(factor, eps):
    vectors = np.linalg.eigh(with_diagonal(factor, eps))[1][:, ::-1]
    return vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(len(factor))])


def next_basis(factor, basis, eps):
    """A step of the power iteration, and the order of the old columns."""
    if not np.trace(factor) > 0:
        return basis, np.arange(len(basis))
    a = with_diagonal(factor, eps)
    order = np.argsort(-np.diag(basis.T @ a @ basis), kind="stable")
    q, r = np.linalg.qr(a @ basis[:, order])
    return q * np.sign(np.diag(r)), order


def careful(u, g, caution):
    agrees = u * g > 0
    return u * agrees / max(agrees.mean(), 1e-3) if caution and u.size else u


def step(
    p, g, s, t, *, lr, betas, eps, weight_decay, shampoo_beta, matrix_eps, block_size, precondition_frequency,
    caution=False,
):  # fmt: skip
    b1, b2 = betas
    cells = blocks(p, block_size)
    if not cells:
        m, v = b1 * s["exp_avg"] + (1 - b1) * g, b2 * s["exp_avg_sq"] + (1 - b2) * g**2
        u = careful(m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps), g, caution)
        return p - lr * (u + weight_decay * p), {"exp_avg": m, "exp_avg_sq": v}
    states = {name: x.copy() for name, x in s.items()}
    flat = p.shape[0], -1
    step, means, mean_squares = (np.zeros_like(p).reshape(flat) for _ in range(3))
    for cell, factors, bases in zip(cells, states["factors"], states["eigenbases"], strict=True):
        G, M, V = (x.reshape(flat)[cell] for x in (g, s["exp_avg"], s["exp_avg_sq"]))
        pair, (left, right) = squares(factors, *G.shape), squares(bases, *G.shape)
        if t > 1:
            turned = left.T @ G @ right
            M, V = b1 * M + (1 - b1) * turned, b2 * V + (1 - b2) * turned**2
            u = M / (1 - b1 ** (t - 1)) / (np.sqrt(V / (1 - b2 ** (t - 1))) + eps)
            step[cell] = left @ u @ right.T
        for factor, product in zip(pair, (G @ G.T, G.T @ G), strict=True):
            factor[:] = shampoo_beta * factor + (1 - shampoo_beta) * product
        if t == 1:
            left[:], right[:] = (first_basis(factor, matrix_eps) for factor in pair)
        elif (t - 1) % precondition_frequency == 0:
            (new_left, rows), (new_right, columns) = (
                next_basis(factor, basis, matrix_eps)
                for factor, basis in zip(pair, (left, right), strict=True)
            )
            M = new_left.T @ left @ M @ right.T @ new_right
            V = V[rows][:, columns]
            left[:], right[:] = new_left, new_right
        means[cell], mean_squares[cell] = M, V
    states |= {"exp_avg": means.reshape(p.shape), "exp_avg_sq": mean_squares.reshape(p.shape)}
    u = careful(step.reshape(p.shape), g, caution)
    return p if t == 1 else p - lr * (u + weight_decay * p), states


# With a matrix_eps that parts all eigenvalues, order and signs do not depend on rounding; test_soap.py has small
# ones. Bases change at steps 1, 4, 7.
BASE = dict(
    lr=0.07,
    betas=(0.7, 0.85),
    eps=1e-8,
    weight_decay=0.0,
    shampoo_beta=0.6,
    matrix_eps=30.0,
    block_size=20,
    precondition_frequency=3,
)
VARIANTS = {
    "beta1=0": {**BASE, "betas": (0.0, 0.5), "weight_decay": 0.1},
    "blocks": {**BASE, "block_size": 3, "precondition_frequency": 4, "matrix_eps": 3.0},
    "now": {**BASE, "shampoo_beta": 0.0, "precondition_frequency": 1, "block_size": 4, "eps": 0.1},
}
CHANGES = {"shampoo_beta": 0.9, "matrix_eps": 15.0, "block_size": 2, "precondition_frequency": 1}
SLOW = dict(betas=(0.999999,) * 2)
ROUNDINGS = 400

_FILE = "optim/adan_optim/soap.py"
FAULTS = [
    ("bias of all gradients", _FILE, "u = m / (1 - b1 ** (t - 1)) /", "u = m / (1 - b1**t) /"),
    ("bias of all squares", _FILE, "(v.sqrt() / math.sqrt(1 - b2 ** (t - 1)) +", "(v.sqrt() / math.sqrt(1 - b2**t) +"),
    ("squares of the gradient as it was", _FILE, "v.mul_(b2).add_(turned.square(), alpha=1 - b2)", "v.mul_(b2).add_(g.square(), alpha=1 - b2)"),
    ("the mean of the gradient as it was", _FILE, "m.mul_(b1).add_(turned, alpha=1 - b1)", "m.mul_(b1).add_(g, alpha=1 - b1)"),
    ("not turned back", _FILE, "u = share_of(p, _turned(whole(u), [(left.mT, right.mT) for left, right in bases], size))", "pass"),
    ("turned twice", _FILE, "_turned(whole(u), [(left.mT, right.mT) for left, right in bases], size)", "_turned(whole(u), bases, size)"),
    ("a first step", _FILE, "        if t > 1:\n            turned", "        if t > 0:\n            turned"),
    ("decay dropped", _FILE, 'p.mul_(1 - lr * group["weight_decay"]).sub_', "p.sub_"),
    ("factors sum", _FILE, 'factor.mul_(group["shampoo_beta"]).add_(product, alpha=1 - group["shampoo_beta"])', 'factor.mul_(group["shampoo_beta"]).add_(product)'),
    ("b2 for shampoo_beta", _FILE, 'factor.mul_(group["shampoo_beta"]).add_', "factor.mul_(b2).add_"),
    ("squares keep their order", _FILE, "v = v.gather(dim, order.unsqueeze(-3 - dim).expand_as(v))", "pass"),
    ("the mean keeps its basis", _FILE, "m = new_left.mT @ (old_left @ m @ old_right.mT) @ new_right", "pass"),
    ("bases are not kept", _FILE, "        torch._foreach_copy_(basis, new.unbind())\n", ""),
    ("bases a step late", _FILE, '(t - 1) % group["precondition_frequency"]', 't % group["precondition_frequency"]'),
    ("small eigenvalues first", _FILE, "vectors.flip(-1).to(x.dtype)", "vectors.to(x.dtype)"),
    ("signs of the library", _FILE, "return vectors * torch.where(largest < 0, -1.0, 1.0), _as_they_are(x)", "return vectors, _as_they_are(x)"),
    ("signs may change", _FILE, "new = new * signs.unsqueeze(-2)", "pass"),
    ("rising order", _FILE, "descending=True", "descending=False"),
    ("no power iteration", _FILE, "product = x @ former", "product = former"),
    ("not over the trace", _FILE, "torch.where(usable, factor / trace, identity)", "torch.where(usable, factor, identity)"),
    ("no small diagonal", _FILE, "    x.diagonal(dim1=-2, dim2=-1).add_(small)\n", ""),
    ("an even small diagonal", _FILE, "torch.linspace(2 * matrix_eps, matrix_eps,", "torch.linspace(matrix_eps, matrix_eps,"),
    ("what is not finite goes into the basis", _FILE, "return torch.where(usable, new, former), ", "return new, "),
    ("no caution", _FILE, "sub_(cautious(u, g, group), alpha=lr)", "sub_(u, alpha=lr)"),
    ("foreach: no caution", _FILE, "cautious_many(_turned_many(u, back, size), g, group)", "_turned_many(u, back, size)"),
    ("foreach: a first step", _FILE, "for i, ti in enumerate(t) if ti > 1]", "for i, ti in enumerate(t) if ti > 0]"),
    ("foreach: no bias correction of the mean", _FILE, "        torch._foreach_mul_(denominator, [1 - b1 ** (ti - 1) for ti in t])\n", ""),
    ("foreach: no eps", _FILE, '        torch._foreach_add_(denominator, group["eps"])\n', ""),
    ("foreach: decay dropped", _FILE, '        torch._foreach_mul_(p, 1 - lr * group["weight_decay"])\n', ""),
    ("foreach: factors sum", _FILE, 'torch._foreach_lerp_(factor, product.unbind(), 1 - group["shampoo_beta"])', "torch._foreach_add_(factor, product.unbind())"),
    ("foreach: turned on one side", _FILE, "torch.stack(left).mT @ torch.stack(blocks_of) @ torch.stack(right)", "torch.stack(left).mT @ torch.stack(blocks_of)"),
    ("foreach: moments of other layouts are lost", _FILE, "                torch._foreach_copy_(kept, turned)\n", "                pass\n"),
]  # fmt: skip
