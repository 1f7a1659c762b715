"""Lion: arXiv 2302.06675, Algorithm 2."""

# ruff: noqa: E501 (exact texts)
import numpy as np

STATES = ("exp_avg",)


def mean(g, s, betas):
    return betas[0] * s["exp_avg"] + (1 - betas[0]) * g


def step(p, g, s, t, *, lr, betas, weight_decay, caution=False):
    u = np.sign(mean(g, s, betas))
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    m = betas[1] * s["exp_avg"] + (1 - betas[1]) * g
    return p - lr * (u + weight_decay * p), {"exp_avg": m}


def jump(p, g, s, t, *, lr, betas, weight_decay, caution=False):
    return np.abs(mean(g, s, betas))


BASE = dict(lr=0.07, betas=(0.7, 0.85), weight_decay=0.0)
VARIANTS = {
    "beta1=0": {**BASE, "betas": (0.0, 0.5), "weight_decay": 0.1},  # the sign of the gradient
    "beta1>beta2": {**BASE, "betas": (0.9, 0.2), "weight_decay": 0.2},
}
CHANGES = {"betas": (0.3, 0.6)}
SLOW = dict(betas=(0.999999,) * 2)

LION, RULES = "optim/adan_optim/lion.py", "csrc/rules.h"
FAULTS = [
    ("sign of the old mean", LION, "_sign(b1 * m + (1 - b1) * g)", "_sign(m)"),
    ("sign of the gradient", LION, "_sign(b1 * m + (1 - b1) * g)", "_sign(g)"),
    ("b2 in the sign", LION, "_sign(b1 * m + (1 - b1) * g)", "_sign(b2 * m + (1 - b2) * g)"),
    ("no sign", LION, "u = cautious(_sign(b1 * m + (1 - b1) * g), g, group)", "u = b1 * m + (1 - b1) * g"),
    ("decay without lr", LION, "p.mul_(1 - lr * group", "p.mul_(1 - group"),
    ("decay dropped", LION, 'p.mul_(1 - lr * group["weight_decay"]).sub_', "p.sub_"),
    ("the step not scaled", LION, ".sub_(u, alpha=lr)", ".sub_(u)"),
    ("b1 in the mean", LION, "m.mul_(b2).add_(g, alpha=1 - b2)", "m.mul_(b1).add_(g, alpha=1 - b1)"),
    ("the mean sums", LION, "m.mul_(b2).add_(g, alpha=1 - b2)", "m.mul_(b2).add_(g)"),
    ("NaN hidden", LION, "torch.where(x.isnan(), x, x.sign())", "x.sign()"),
    ("foreach: b2 in the sign", LION, "torch._foreach_lerp(m, g, 1 - b1)", "torch._foreach_lerp(m, g, 1 - b2)"),
    ("foreach: no sign", LION, "[_sign(x) for x in torch._foreach_lerp(m, g, 1 - b1)]", "torch._foreach_lerp(m, g, 1 - b1)"),
    ("foreach: decay dropped", LION, 'torch._foreach_mul_(p, 1 - lr * group["weight_decay"])', "pass"),
    ("foreach: decay without lr", LION, "torch._foreach_mul_(p, 1 - lr * group", "torch._foreach_mul_(p, 1 - group"),
    ("foreach: the step not scaled", LION, "torch._foreach_add_(p, u, alpha=-lr)", "torch._foreach_add_(p, u, alpha=-1)"),
    ("foreach: ascent", LION, "torch._foreach_add_(p, u, alpha=-lr)", "torch._foreach_add_(p, u, alpha=lr)"),
    ("foreach: b1 in the mean", LION, "torch._foreach_lerp_(m, g, 1 - b2)", "torch._foreach_lerp_(m, g, 1 - b1)"),
    ("fused: b2 in the sign", RULES, "const T mean = k.beta1 * s[0] + k.rest1 * g;", "const T mean = k.beta2 * s[0] + k.rest2 * g;"),
    ("fused: no sign", RULES, "return k.lr * sign;", "return k.lr * mean;"),
    ("fused: sign of positive numbers alone", RULES, "    sign = mean < 0 ? T(-1) : sign;\n", ""),
    ("fused: NaN hidden", RULES, "T sign = mean > 0 ? T(1) : mean;", "T sign = mean > 0 ? T(1) : T(0);"),
    ("fused: the step not scaled", RULES, "return k.lr * sign;", "return sign;"),
    ("fused: gradients not scaled", RULES, "    g *= k.grad_scale;\n    const T mean", "    const T mean"),
    ("fused: betas swapped", LION, '*group["betas"], group', '*reversed(group["betas"]), group'),
    ("fused: the mean before the sign", RULES, "    const T mean = k.beta1 * s[0]", "    s[0] = k.beta2 * s[0] + k.rest2 * g;\n    const T mean = k.beta1 * s[0]"),
]  # fmt: skip
