"""Schedule-free Adan: the iterates of arXiv 2405.15682, Algorithm 1, along Adan's direction (2208.06677)."""

# ruff: noqa: E501 (exact texts)
import numpy as np


def initial(p, **_):
    states = {name: np.zeros_like(p) for name in ("z", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad")}
    return {**states, "weight_sum": np.zeros(()), "lr_max": np.zeros(())}


def step(
    p, g, s, t, *, lr, betas, eps, weight_decay, warmup_steps=0, r=0.0, weight_lr_power=2.0, caution=False
):
    b1, b2, b3 = betas
    diff = g + s["neg_pre_grad"] if t > 1 else 0 * g
    v = b2 * s["exp_avg_diff"] + (1 - b2) * diff
    n = b3 * s["exp_avg_sq"] + (1 - b3) * (g + b2 * diff) ** 2
    u = (g + b2 * v / (1 - b2**t)) / (np.sqrt(n / (1 - b3**t)) + eps)
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    rate = lr * min(1.0, t / warmup_steps) if warmup_steps else lr
    top = max(rate, float(s["lr_max"]))
    before = s["weight_sum"] * ((t - 1) ** r * s["lr_max"] ** weight_lr_power)
    weight = t**r * top**weight_lr_power
    c = weight / (before + weight) if weight else 1.0
    z = p if t == 1 else s["z"]
    x = (p - (1 - b1) * z) / b1
    z = z - rate * (u + weight_decay * p)
    x = (1 - c) * x + c * z
    states = {"z": z, "exp_avg_diff": v, "exp_avg_sq": n, "neg_pre_grad": -g}
    return (1 - b1) * z + b1 * x, {**states, "weight_sum": np.asarray(1 / c), "lr_max": np.asarray(top)}


BASE = dict(lr=0.07, betas=(0.7, 0.6, 0.8), eps=1e-8, weight_decay=0.0)
VARIANTS = {
    "warmup": {**BASE, "warmup_steps": 4, "weight_decay": 0.2, "eps": 0.01},
    "polynomial": {**BASE, "betas": (0.4, 0.9, 0.5), "r": 1.5, "warmup_steps": 30, "weight_lr_power": 0.5},
    "uniform": {**BASE, "betas": (0.95, 0.3, 0.9), "weight_lr_power": 0.0, "warmup_steps": 3},
}
CHANGES = {"warmup_steps": 10, "r": 2.0, "weight_lr_power": 0.5, "take_gradients": True}
GIVEN = {"weight_lr_power": {"warmup_steps": 10}}
UNIT = dict(betas=(1e-3, 0.92, 0.99))  # y is next to z, which moves by lr
SLOW = dict(betas=(0.999999,) * 3)

OWN, RULES = "optim/adan_optim/schedule_free_adan.py", "csrc/rules.h"
FAULTS = [
    ("a difference at first", OWN, "torch.zeros_like(g)", "g.clone()"),
    ("the difference the wrong way round", OWN, "diff = g + neg_pre_grad if", "diff = g - neg_pre_grad if"),
    ("b3 in v", OWN, "v.mul_(b2).add_(diff, alpha=1 - b2)", "v.mul_(b3).add_(diff, alpha=1 - b3)"),
    ("n of the gradient", OWN, "(g + b2 * diff).square()", "g.square()"),
    ("n of the whole difference", OWN, "(g + b2 * diff).square()", "(g + diff).square()"),
    ("v not corrected", OWN, "b2 * v / (1 - b2**t)", "b2 * v"),
    ("v times its correction", OWN, "b2 * v / (1 - b2**t)", "b2 * v * (1 - b2**t)"),
    ("v without b2", OWN, "g + b2 * v / ", "g + v / "),
    ("n not corrected", OWN, "n.sqrt() / math.sqrt(1 - b3**t)", "n.sqrt()"),
    ("the gradient is not kept", OWN, "neg_pre_grad.copy_(g).neg_()", "neg_pre_grad.copy_(g)"),
    ("foreach: a difference at first", OWN, "if ti == 1]:\n            torch._foreach_zero_(first)", "if ti == 0]:\n            torch._foreach_zero_(first)"),
    ("foreach: b3 in v", OWN, "torch._foreach_lerp_(v, diff, 1 - b2)", "torch._foreach_lerp_(v, diff, 1 - b3)"),
    ("foreach: n of the whole difference", OWN, "        torch._foreach_mul_(diff, b2)\n", ""),
    ("foreach: v not corrected", OWN, "b2 / (1 - b2**ti) for ti in t", "b2 for ti in t"),
    ("foreach: no gradient in the step", OWN, "        torch._foreach_add_(u, g)\n", ""),
    ("foreach: n corrected with b2", OWN, "denominators(n, b3, t, group)", "denominators(n, b2, t, group)"),
    ("fused: v not corrected", RULES, "const T u = (g + k.v_rate * s[1]) /", "const T u = (g + k.beta2 * s[1]) /"),
    ("fused: no gradient in the step", RULES, "const T u = (g + k.v_rate * s[1]) /", "const T u = k.v_rate * s[1] /"),
    ("fused: v with the learning rate", RULES, "Adan::Scalars<T>({1, h.beta1", "Adan::Scalars<T>({h.lr, h.beta1"),
    ("fused: decay dropped", RULES, "u + k.weight_decay * p, p, s[0]", "u, p, s[0]"),
]  # fmt: skip
