"""Schedule-free AdamW: arXiv 2405.15682, Algorithm 1, all three iterates written out; AdamW's direction."""

# ruff: noqa: E501 (exact texts)
import numpy as np


def initial(p, **_):
    return {
        "z": np.zeros_like(p),
        "exp_avg_sq": np.zeros_like(p),
        "weight_sum": np.zeros(()),
        "lr_max": np.zeros(()),
    }


def iterates(y, d, s, t, *, lr, betas, warmup_steps, r, weight_lr_power):
    """The new y, z, sum of weights over the newest, and largest learning rate, after a step along d."""
    rate = lr * min(1.0, t / warmup_steps) if warmup_steps else lr
    top = max(rate, float(s["lr_max"]))
    before = s["weight_sum"] * ((t - 1) ** r * s["lr_max"] ** weight_lr_power)
    weight = t**r * top**weight_lr_power
    c = weight / (before + weight) if weight else 1.0
    z = y if t == 1 else s["z"]
    x = (y - (1 - betas[0]) * z) / betas[0]
    z = z - rate * d
    x = (1 - c) * x + c * z
    return (1 - betas[0]) * z + betas[0] * x, z, np.asarray(1 / c), np.asarray(top)


def step(
    p, g, s, t, *, lr, betas, eps, weight_decay, warmup_steps=0, r=0.0, weight_lr_power=2.0, caution=False
):
    v = betas[1] * s["exp_avg_sq"] + (1 - betas[1]) * g**2
    u = g / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    mean = dict(lr=lr, betas=betas, warmup_steps=warmup_steps, r=r, weight_lr_power=weight_lr_power)
    y, z, total, top = iterates(p, u + weight_decay * p, s, t, **mean)
    return y, {"z": z, "exp_avg_sq": v, "weight_sum": total, "lr_max": top}


BASE = dict(lr=0.07, betas=(0.7, 0.85), eps=1e-8, weight_decay=0.0)
VARIANTS = {
    "warmup": {**BASE, "warmup_steps": 4, "weight_decay": 0.2, "eps": 0.01},
    "polynomial": {**BASE, "betas": (0.4, 0.9), "r": 1.5, "warmup_steps": 30, "weight_lr_power": 0.5},
    "uniform": {**BASE, "betas": (0.95, 0.5), "weight_lr_power": 0.0, "warmup_steps": 3},
}
CHANGES = {"warmup_steps": 10, "r": 2.0, "weight_lr_power": 0.5}
GIVEN = {"weight_lr_power": {"warmup_steps": 10}}
SHOWN_ELSEWHERE = {"caution": "test_schedule_free.py::test_caution_with_zero_gradients"}
UNIT = dict(betas=(1e-3, 0.99))  # y is next to z, which moves by lr
SLOW = dict(betas=(0.999999,) * 2)

OWN, RULES = "optim/adan_optim/schedule_free_adamw.py", "csrc/rules.h"
FAULTS = [
    ("b1 in v", OWN, 'b2 = group["betas"][1]\n        v', 'b2 = group["betas"][0]\n        v'),
    ("v not corrected", OWN, "v.sqrt() / math.sqrt(1 - b2**t)", "v.sqrt()"),
    ("no root", OWN, "g.div(v.sqrt() / ", "g.div(v / "),
    ("no eps", OWN, ' + group["eps"])', ")"),
    ("foreach: b1 in v", OWN, 'b2, v = group["betas"][1]', 'b2, v = group["betas"][0]'),
    ("foreach: v forgets", OWN, "        torch._foreach_mul_(v, b2)\n", ""),
    ("foreach: v of the gradient", OWN, "torch._foreach_addcmul_(v, g, g, 1 - b2)", "torch._foreach_add_(v, g, alpha=1 - b2)"),
    ("foreach: v not corrected", "optim/adan_optim/schedule_free.py", "    torch._foreach_div_(found, [math.sqrt(1 - beta**ti) for ti in t])\n", ""),
    ("foreach: no eps", "optim/adan_optim/schedule_free.py", '    torch._foreach_add_(found, group["eps"])\n', ""),
    ("fused: v forgets", RULES, "    s[1] = k.beta2 * s[1] + k.rest2 * (g * g);\n    move(", "    s[1] = k.rest2 * (g * g);\n    move("),
    ("fused: decay dropped", RULES, "move(k, rate, c, g / (root(s[1]) * k.root_rate + k.eps) + k.weight_decay * p, p", "move(k, rate, c, g / (root(s[1]) * k.root_rate + k.eps), p"),
    ("fused: v not corrected", RULES, "move(k, rate, c, g / (root(s[1]) * k.root_rate +", "move(k, rate, c, g / (root(s[1]) +"),
]  # fmt: skip
