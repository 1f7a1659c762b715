"""AdamW: arXiv 1711.05101, Algorithm 2."""

import numpy as np

STATES = ("exp_avg", "exp_avg_sq")


def step(p, g, s, t, *, lr, betas, eps, weight_decay):
    b1, b2 = betas
    m = b1 * s["exp_avg"] + (1 - b1) * g
    v = b2 * s["exp_avg_sq"] + (1 - b2) * g**2
    u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    return p - lr * (u + weight_decay * p), {"exp_avg": m, "exp_avg_sq": v}


BASE = dict(lr=0.07, betas=(0.7, 0.85), eps=1e-8, weight_decay=0.0)
VARIANTS = {"beta1=0": {**BASE, "betas": (0.0, 0.5), "weight_decay": 0.1}}
SLOW = dict(betas=(0.999999,) * 2)
