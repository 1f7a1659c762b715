"""Shampoo: arXiv 1802.09568, Algorithm 1 (whose sums are shampoo_beta = 1), in the form of arXiv 2309.06497:
blocks that are parameters of their own, factors that forget, a filtered gradient, roots computed now and
then, grafted to Adam, with decoupled weight decay. The damping is relative, as in arXiv 2002.09018.
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
        states |= {name: np.zeros((len(sizes), max(sizes))) for name in ("factors", "inverse_roots")}
    return states


def power(a, exponent, eps):
    """(A / |A| + eps I)^-exponent of a symmetric matrix that is not zero."""
    values, vectors = np.linalg.eigh(a)
    return vectors @ np.diag((np.maximum(values, 0) / values.max() + eps) ** -exponent) @ vectors.T


def step(
    p,
    g,
    s,
    t,
    *,
    lr,
    betas,
    eps,
    weight_decay,
    shampoo_beta,
    matrix_eps,
    exponent,
    block_size,
    precondition_frequency,
    start_preconditioning_step,
    caution=False,
):
    b1, b2 = betas
    m = b1 * s["exp_avg"] + (1 - b1) * g
    v = b2 * s["exp_avg_sq"] + (1 - b2) * g**2
    u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    states = {"exp_avg": m, "exp_avg_sq": v}
    if cells := blocks(p, block_size):
        due = (
            t >= start_preconditioning_step and (t - start_preconditioning_step) % precondition_frequency == 0
        )
        factors, roots, u = s["factors"].copy(), s["inverse_roots"].copy(), u.reshape(p.shape[0], -1).copy()
        for cell, factor, root in zip(cells, factors, roots, strict=True):
            G, M, A = g.reshape(u.shape)[cell], m.reshape(u.shape)[cell], u[cell]
            at, found = 0, []
            for product in (G @ G.T, G.T @ G):
                part = slice(at, at + product.size)
                at = part.stop
                factor[part] = shampoo_beta * factor[part] + product.ravel()
                square = factor[part].reshape(product.shape)
                if due and square.any():
                    root[part] = power(square, exponent, matrix_eps).ravel()
                found.append(root[part].reshape(product.shape))
            P = found[0] @ M @ found[1]
            if P.any():
                u[cell] = P * np.linalg.norm(A) / np.linalg.norm(P)
        u = u.reshape(p.shape)
        states |= {"factors": factors, "inverse_roots": roots}
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    return p - lr * (u + weight_decay * p), states


# A matrix_eps that leaves the roots well conditioned: their tolerance is one of rounding. Blocks are small,
# because the tests' tensors are wide; roots change at steps 2, 7, 12.
BASE = dict(
    lr=0.07,
    betas=(0.7, 0.85),
    eps=1e-8,
    weight_decay=0.0,
    shampoo_beta=0.6,
    matrix_eps=0.1,
    exponent=0.25,
    block_size=60,
    precondition_frequency=5,
    start_preconditioning_step=2,
)
VARIANTS = {
    "beta1=0": {**BASE, "betas": (0.0, 0.5), "weight_decay": 0.1},
    "blocks": {**BASE, "block_size": 3, "precondition_frequency": 4, "start_preconditioning_step": 4},
    "sum": {**BASE, "shampoo_beta": 1.0, "exponent": 0.5, "matrix_eps": 0.2, "precondition_frequency": 3},
    "now": {**BASE, "shampoo_beta": 0.0, "start_preconditioning_step": 1, "block_size": 4, "eps": 0.1},
}
CHANGES = {
    "shampoo_beta": 0.9,
    "matrix_eps": 0.3,
    "exponent": 0.5,
    "block_size": 2,
    "precondition_frequency": 1,
    "start_preconditioning_step": 3,
}
SLOW = dict(betas=(0.999999,) * 2)
# A factor sums 60 products that cancel in part, and near zero a root is exponent matrix_eps^(-1 - exponent),
# 4 times, as steep as its eigenvalue: 23 and 15 were seen.
ROUNDINGS = 100

_FILE, _BLOCKS = "optim/adan_optim/shampoo.py", "optim/adan_optim/engine/matrices.py"
FAULTS = [
    ("no direction, AdamW's step", _FILE, "U.copy_(grafted(roots[0] @ M @ roots[1], A))", "U.copy_(A)"),
    ("the gradient, not its mean", _FILE, "roots[0] @ M @ roots[1]", "roots[0] @ G @ roots[1]"),
    ("left root on both sides", _FILE, "zip(factors, roots, (G @ G.mT, G.mT @ G), strict=True)",
     "zip(factors, roots, (G @ G.mT, G @ G.mT if G.shape[0] == G.shape[1] else G.mT @ G), strict=True)"),
    ("factors of the mean gradient", _FILE, "(G @ G.mT, G.mT @ G)", "(M @ M.mT, M.mT @ M)"),
    ("factors do not forget", _FILE, 'factor.mul_(group["shampoo_beta"]).add_(product)', "factor.add_(product)"),
    ("b2 for shampoo_beta", _FILE, 'factor.mul_(group["shampoo_beta"])', "factor.mul_(b2)"),
    ("roots a step late", _FILE, "since >= 0 and since %", "since >= 1 and (since - 1) %"),
    ("roots at multiples", _FILE, 'since % group["precondition_frequency"]', 't % group["precondition_frequency"]'),
    ("roots before the first is due", _FILE, "since >= 0 and", "True and"),
    ("damping that is not relative", _FILE, "values.clamp(min=0) / values[..., -1:] +", "values.clamp(min=0) +"),
    ("no damping", _FILE, 'values[..., -1:] + group["matrix_eps"]', "values[..., -1:]"),
    ("negative eigenvalues", _FILE, "values.clamp(min=0) /", "values /"),
    ("half the exponent", _FILE, '-group["exponent"]', '-group["exponent"] / 2'),
    ("eigenvectors not transposed", _FILE, "@ vectors.mT).to", "@ vectors).to"),
    ("float64 is not tried", _BLOCKS, "for dtype in (x.dtype, torch.float64):", "for dtype in (x.dtype,):"),
    ("what is not finite goes into the roots", _FILE, "torch.where(usable & root.isfinite().all(-1, True).all(-2, True), root, former)", "root"),
    ("zero factors have roots that are not finite", _FILE, "usable & root.isfinite().all(-1, True).all(-2, True)", "usable"),
    ("not grafted", _FILE, "direction * (size / norm)", "direction"),
    ("one norm for all blocks", _FILE, "dim=(-2, -1), keepdim=True", "keepdim=True"),
    ("no step where there are no roots", _FILE, "direction * (size / norm), step)", "direction * (size / norm), 0 * step)"),
    ("reference: decay dropped", _FILE, 'p.mul_(1 - lr * group["weight_decay"]).sub_', "p.sub_"),
    ("reference: no bias correction", _FILE, "u = m / (1 - b1**t) /", "u = m /"),
    ("foreach: the gradient, not its mean", _FILE, "(cut(x, size) for x in (g[i], m[i], a[i], step))", "(cut(x, size) for x in (g[i], g[i], a[i], step))"),
    ("foreach: factors do not forget", _FILE, '                torch._foreach_mul_(factor, group["shampoo_beta"])\n', ""),
    ("foreach: schedule of the first parameter", _FILE, "if is_due(t[i], group):", "if is_due(t[0], group):"),
    ("foreach: right roots not computed", _FILE, "for k in (0, 1)]", "for k in (0, 0)]"),
    ("foreach: right factor is the left", _FILE, "zip(factors_of, (x @ x.mT, x.mT @ x), strict=True)",
     "zip(factors_of, (x @ x.mT, x @ x.mT if x.shape[1] == x.shape[2] else x.mT @ x), strict=True)"),
    ("foreach: decay dropped", _FILE, '        torch._foreach_mul_(p, 1 - lr * group["weight_decay"])\n', ""),
    ("foreach: bias correction of the first parameter", _FILE, "[1 - b1**ti for ti in t]", "[1 - b1 ** t[0] for ti in t]"),
    ("a block lies over the next", _BLOCKS, "row[m * m : m * m + n * n]", "row[: n * n]"),
    ("another block_size is not noticed", _BLOCKS, "if rows.shape != sides_shape(shape, block_size):", "if False:"),
    ("stacks have no bound", _BLOCKS, "count = max(1, STACK // max(x.numel() for x in same[0]))", "count = len(same)"),
    ("the last block of a stack is left out", _BLOCKS, "for i in range(0, len(same), count):", "for i in range(0, len(same) - 1, count):"),
    ("vectors are matrices", _BLOCKS, "math.prod(shape[1:])) < 2:", "math.prod(shape[1:])) < 1:"),
    ("FSDP2: each process keeps the whole step", "optim/adan_optim/engine/dtensor.py", "return copies.redistribute(placements=owner.placements)", "return copies"),
]  # fmt: skip
