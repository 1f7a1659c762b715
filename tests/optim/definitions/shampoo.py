"""Shampoo: arXiv 1802.09568, Algorithm 1 (whose sums are shampoo_beta = 1), in the form of arXiv 2309.06497:
blocks that are parameters of their own, factors that forget, a filtered gradient, roots computed now and
then, grafted to Adam, with decoupled weight decay. The damping is relative, as in arXiv 2002.09018.
"""

import numpy as np


def blocks(x, block_size):
    """Index pairs of the blocks of x as a matrix, row by row; none of vectors."""
    if x.ndim < 2 or min(x.shape[0], x[0].size if x.shape[0] else 0) < 2:
        return []
    parts = [np.array_split(np.arange(n), -(-n // block_size)) for n in (x.shape[0], x[0].size)]
    return [np.ix_(rows, columns) for rows in parts[0] for columns in parts[1]]


def initial(p, *, block_size, **_):
    states = {"exp_avg": np.zeros_like(p), "exp_avg_sq": np.zeros_like(p)}
    size = sum(rows.size**2 + columns.size**2 for rows, columns in blocks(p, block_size))
    return states | ({"factors": np.zeros(size), "inverse_roots": np.zeros(size)} if size else {})


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
        at = 0
        for cell in cells:
            G, M, A = g.reshape(u.shape)[cell], m.reshape(u.shape)[cell], u[cell]
            found = []
            for product in (G @ G.T, G.T @ G):
                part = slice(at, at + product.size)
                at = part.stop
                factors[part] = shampoo_beta * factors[part] + product.ravel()
                square = factors[part].reshape(product.shape)
                if due and square.any():
                    roots[part] = power(square, exponent, matrix_eps).ravel()
                found.append(roots[part].reshape(product.shape))
            P = found[0] @ M @ found[1]
            if P.any():
                u[cell] = P * np.linalg.norm(A) / np.linalg.norm(P)
        u = u.reshape(p.shape)
        states |= {"factors": factors, "inverse_roots": roots}
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
# A factor sums 60 products that cancel in part, and near zero a root is exponent matrix_eps^(-1 - exponent) = 4
# times as steep as its eigenvalue: 23 and 15 were seen.
ROUNDINGS = 50
