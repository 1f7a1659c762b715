"""MARS-AdamW: arXiv 2411.10438, Algorithm 2 with the previous gradient, matrices alone unless optimize_1d."""

# ruff: noqa: E501 (exact texts)
import numpy as np

STATES = ("exp_avg", "exp_avg_sq", "last_grad")


def step(p, g, s, t, *, lr, betas, eps, weight_decay, gamma=0.025, optimize_1d=False, caution=False):
    b1, b2 = betas
    c = g
    if p.ndim >= 2 or optimize_1d:
        previous = g if t == 1 else s["last_grad"]
        c = g + gamma * b1 / (1 - b1) * (g - previous)
        if (norm := np.sqrt((c**2).sum())) > 1:
            c = c / norm
    m = b1 * s["exp_avg"] + (1 - b1) * c
    v = b2 * s["exp_avg_sq"] + (1 - b2) * c**2
    u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    return p - lr * (u + weight_decay * p), {"exp_avg": m, "exp_avg_sq": v, "last_grad": g}


BASE = dict(lr=0.07, betas=(0.7, 0.85), eps=1e-8, weight_decay=0.0, gamma=0.3)
VARIANTS = {
    "beta1=0": {**BASE, "betas": (0.0, 0.5), "weight_decay": 0.1},
    "optimize_1d": {**BASE, "optimize_1d": True, "weight_decay": 0.2, "eps": 0.01},
    "short": {**BASE, "optimize_1d": True, "max_grad_norm": 0.5, "eps": 0.1},  # norms below 1
}
CHANGES = {"gamma": 0.1, "optimize_1d": True}
SLOW = dict(betas=(0.999999,) * 2)

MARS, RULES = "optim/adan_optim/mars.py", "csrc/rules.h"
FAULTS = [
    ("no correction", MARS, "c = g + _correction(group) * (g - last) if t > 1 else g", "c = g"),
    ("a correction at first", MARS, "(g - last) if t > 1 else g", "(g - last)"),
    ("the difference the wrong way round", MARS, "_correction(group) * (g - last)", "_correction(group) * (last - g)"),
    ("gamma alone", MARS, 'group["gamma"] * b1 / (1 - b1)', 'group["gamma"]'),
    ("c is not clipped", MARS, "            c = c / c.norm().clamp(min=1)\n", ""),
    ("c has norm 1", MARS, "c = c / c.norm().clamp(min=1)", "c = c / c.norm()"),
    ("vectors corrected", MARS, 'return p.ndim >= 2 or group["optimize_1d"]', "return True"),
    ("optimize_1d ignored", MARS, 'return p.ndim >= 2 or group["optimize_1d"]', "return p.ndim >= 2"),
    ("v of the gradient", MARS, "v.mul_(b2).add_(c.square(), alpha=1 - b2)", "v.mul_(b2).add_(g.square(), alpha=1 - b2)"),
    ("m of the gradient", MARS, "m.mul_(b1).add_(c, alpha=1 - b1)", "m.mul_(b1).add_(g, alpha=1 - b1)"),
    ("m not corrected", MARS, "u = m / (1 - b1**t) /", "u = m /"),
    ("c is kept", MARS, "        last.copy_(g)\n", "        last.copy_(c)\n"),
    ("decay without lr", MARS, "p.mul_(1 - lr * group", "p.mul_(1 - group"),
    ("no caution", MARS, "sub_(cautious(u, g, group), alpha=lr)", "sub_(u, alpha=lr)"),
    ("foreach: no correction", MARS, "        torch._foreach_mul_(c, by)\n", "        torch._foreach_mul_(c, 0.0)\n"),
    ("foreach: a correction at first", MARS, " and ti > 1 else 0.0", " else 0.0"),
    ("foreach: c is not clipped", MARS, "        torch._foreach_div_(c, bounds)\n", ""),
    ("foreach: vectors clipped", MARS, "x.clamp(min=1) if _corrects(pi, group) else torch.ones_like(x)", "x.clamp(min=1)"),
    ("foreach: c is kept", MARS, "torch._foreach_copy_(last, g)", "torch._foreach_copy_(last, c)"),
    ("foreach: no caution", MARS, "m = cautious_many(m, g, group)", "pass"),
    ("fused: no correction", RULES, "const T c = g + k.correction * (g - s[0]);", "const T c = g;"),
    ("fused: no correction in the step", RULES, "T c = x * (g + corrects * k.correction * (g - s[2]));", "T c = x * g;"),
    ("fused: vectors corrected", RULES, "corrects * k.correction", "k.correction"),
    ("fused: c is not clipped", RULES, "T c = x * (g + corrects", "T c = (g + corrects"),
    ("fused: c is kept", RULES, "    s[2] = g;\n    T moments", "    s[2] = c;\n    T moments"),
    ("fused: a correction at first", RULES, "correction(t == 1 ? 0 : h.correction)", "correction(h.correction)"),
    ("fused: the norm of a first step with a correction", RULES, "correction(t == 0 ? 0 : h.correction)", "correction(h.correction)"),
    ("fused: norms below 1 count", MARS, "norms.clamp(min=1).reciprocal()", "norms.reciprocal()"),
    ("fused: squared norms", MARS, "squares.sqrt(), 1.0", "squares, 1.0"),
]  # fmt: skip
