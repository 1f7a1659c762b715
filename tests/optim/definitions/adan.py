"""Adan: arXiv 2208.06677, Algorithm 1, betas as decay factors, with the official code's bias corrections."""

import numpy as np

STATES = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad")


def step(p, g, s, t, *, lr, betas, eps, weight_decay, no_prox=False, caution=False):
    b1, b2, b3 = betas
    g_prev = g if t == 1 else -s["neg_pre_grad"]
    m = b1 * s["exp_avg"] + (1 - b1) * g
    v = b2 * s["exp_avg_diff"] + (1 - b2) * (g - g_prev)
    n = b3 * s["exp_avg_sq"] + (1 - b3) * (g + b2 * (g - g_prev)) ** 2
    u = (m / (1 - b1**t) + b2 * v / (1 - b2**t)) / (np.sqrt(n) / np.sqrt(1 - b3**t) + eps)
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    p = p * (1 - lr * weight_decay) - lr * u if no_prox else (p - lr * u) / (1 + lr * weight_decay)
    return p, {"exp_avg": m, "exp_avg_diff": v, "exp_avg_sq": n, "neg_pre_grad": -g}


BASE = dict(lr=0.07, betas=(0.7, 0.6, 0.8), eps=1e-8, weight_decay=0.0)
VARIANTS = {
    "no_prox": {**BASE, "weight_decay": 0.4, "no_prox": True, "eps": 0.01},
    "beta1=0": {**BASE, "betas": (0.0, 0.9, 0.5), "weight_decay": 0.1},
    # with larger second betas no step would have another sign than its gradient
    "caution": {**BASE, "betas": (0.9, 0.1, 0.8), "weight_decay": 0.2, "eps": 0.05, "caution": True},
    "beta3=0": {**BASE, "betas": (0.9, 0.3, 0.0), "eps": 0.1},
}
CHANGES = {"no_prox": True, "take_gradients": True}
GIVEN = {"caution": {"betas": (0.98, 0.1, 0.99)}}
SLOW = dict(betas=(0.999999,) * 3)
