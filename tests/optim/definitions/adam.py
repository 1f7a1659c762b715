"""Adam: arXiv 1412.6980, Algorithm 1, on the gradient of the loss plus weight_decay |p|^2 / 2.

amsgrad: arXiv 1904.09237, Algorithm 2, with Adam's bias corrections: those of torch.optim.Adam, which are made
after the maximum.
"""

# ruff: noqa: E501 (exact texts)
import numpy as np


def initial(p, *, amsgrad=False, **_):
    names = ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else []))
    return {name: np.zeros_like(p) for name in names}


def step(p, g, s, t, *, lr, betas, eps, weight_decay, amsgrad=False, caution=False):
    b1, b2 = betas
    g = g + weight_decay * p
    new = {"exp_avg": b1 * s["exp_avg"] + (1 - b1) * g, "exp_avg_sq": b2 * s["exp_avg_sq"] + (1 - b2) * g**2}
    v = new["exp_avg_sq"]
    if amsgrad:
        v = new["max_exp_avg_sq"] = np.maximum(s["max_exp_avg_sq"], v)
    u = new["exp_avg"] / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    return p - lr * u, new


BASE = dict(lr=0.07, betas=(0.7, 0.85), eps=1e-8, weight_decay=0.0)
VARIANTS = {
    "beta1=0": {**BASE, "betas": (0.0, 0.5), "weight_decay": 0.1},
    "amsgrad": {**BASE, "betas": (0.7, 0.3), "weight_decay": 0.3, "eps": 0.01, "amsgrad": True},
    "amsgrad_maximize_clip": {
        **BASE,
        "betas": (0.6, 0.2),
        "amsgrad": True,
        "maximize": True,
        "max_grad_norm": 0.7,
    },
}
CHANGES = {"amsgrad": True, "betas": (0.6, 0.3)}
UNFUSED = ("amsgrad",)
SLOW = dict(betas=(0.999999,) * 2)

ADAM, ADAMW, RULES = "optim/adan_optim/adam.py", "optim/adan_optim/adamw.py", "csrc/rules.h"
FAULTS = [
    ("decoupled", ADAM, "decoupled = False", "decoupled = True"),
    ("decay subtracted", ADAMW, "g = g + decay * p", "g = g - decay * p"),
    ("decay with lr", ADAMW, "g = g + decay * p", "g = g + lr * decay * p"),
    ("the gradient changed", ADAMW, "g = g + decay * p", "g = g.add_(p, alpha=decay)"),
    ("decay changes the parameter", ADAMW, "g = g + decay * p", "g = p.mul_(decay).add_(g)"),
    (
        "foreach: decay dropped",
        ADAMW,
        "        elif decay:\n            g = list(torch._foreach_add(g, p, alpha=decay))\n",
        "",
    ),
    (
        "foreach: decay with lr",
        ADAMW,
        "torch._foreach_add(g, p, alpha=decay)",
        "torch._foreach_add(g, p, alpha=lr * decay)",
    ),
    ("foreach: no alpha", ADAMW, "torch._foreach_add(g, p, alpha=decay)", "torch._foreach_add(g, p)"),
    (
        "foreach: the gradient changed",
        ADAMW,
        "g = list(torch._foreach_add(g, p, alpha=decay))",
        "torch._foreach_add_(g, p, alpha=decay)",
    ),
    ("fused: decay dropped", RULES, "k.own_scale * g + k.weight_decay * p", "k.own_scale * g"),
    (
        "fused: decay scaled",
        RULES,
        "k.own_scale * g + k.weight_decay * p",
        "k.own_scale * (g + k.weight_decay * p)",
    ),
    (
        "fused: gradients not scaled",
        RULES,
        "own_scale(scale),\n          weight_decay(",
        "own_scale(1),\n          weight_decay(",
    ),
    (
        "fused: decay twice",
        RULES,
        "({h.lr, h.beta1, h.beta2, h.eps, 0}, t, 1)",
        "({h.lr, h.beta1, h.beta2, h.eps, h.weight_decay}, t, 1)",
    ),
    (
        "fused: step one",
        RULES,
        "({h.lr, h.beta1, h.beta2, h.eps, 0}, t, 1)",
        "({h.lr, h.beta1, h.beta2, h.eps, 0}, 1, 1)",
    ),
    ("amsgrad not taken over", ADAM, "amsgrad=amsgrad, **options", "**options"),
]
