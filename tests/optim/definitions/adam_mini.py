"""Adam-mini: arXiv 2406.16793, Algorithm 1, with a block for each row of a parameter."""

import numpy as np


def rows(shape):
    """The default blocks: the first dimension larger than 1 but never the last; one below two dimensions."""
    return next((n for n in shape[:-1] if n > 1), 1) if np.prod(shape) else 1


def initial(p, **hyper):
    return {"exp_avg": np.zeros_like(p), "exp_avg_sq": np.zeros(rows(p.shape))}


def step(p, g, s, t, *, lr, betas, eps, weight_decay):
    b1, b2 = betas
    m = b1 * s["exp_avg"] + (1 - b1) * g
    count = len(s["exp_avg_sq"])
    squares = g.reshape(count, p.size // count) ** 2
    v = b2 * s["exp_avg_sq"] + (1 - b2) * squares.sum(1) / max(p.size // count, 1)
    u = (m / (1 - b1**t)).reshape(count, -1 if p.size else 0) / (np.sqrt(v / (1 - b2**t)) + eps)[:, None]
    return p - lr * (u.reshape(p.shape) + weight_decay * p), {"exp_avg": m, "exp_avg_sq": v}


BASE = dict(lr=0.07, betas=(0.7, 0.85), eps=1e-8, weight_decay=0.0)
VARIANTS = {"beta1=0": {**BASE, "betas": (0.0, 0.5), "weight_decay": 0.1}}
SHOWN_ELSEWHERE = {"partition": "test_adam_mini.py::test_the_partition_matters"}
SLOW = dict(betas=(0.999999,) * 2)
