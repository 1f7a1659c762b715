"""AdamW: arXiv 1711.05101, Algorithm 2; amsgrad: arXiv 1904.09237, Algorithm 2, corrected as in torch."""

# ruff: noqa: E501 (exact texts)
import numpy as np


def initial(p, *, amsgrad=False, **_):
    names = ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else []))
    return {name: np.zeros_like(p) for name in names}


def step(p, g, s, t, *, lr, betas, eps, weight_decay, amsgrad=False, caution=False):
    b1, b2 = betas
    m = b1 * s["exp_avg"] + (1 - b1) * g
    v = b2 * s["exp_avg_sq"] + (1 - b2) * g**2
    new = {"exp_avg": m, "exp_avg_sq": v}
    if amsgrad:
        v = new["max_exp_avg_sq"] = np.maximum(s["max_exp_avg_sq"], v)
    u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    return p - lr * (u + weight_decay * p), new


BASE = dict(lr=0.07, betas=(0.7, 0.85), eps=1e-8, weight_decay=0.0)
VARIANTS = {
    "beta1=0": {**BASE, "betas": (0.0, 0.5), "weight_decay": 0.1},
    "amsgrad": {**BASE, "betas": (0.7, 0.3), "weight_decay": 0.3, "eps": 0.01, "amsgrad": True},
}
CHANGES = {"amsgrad": True}
UNFUSED = ("amsgrad",)
SLOW = dict(betas=(0.999999,) * 2)

ADAMW, RULES = "optim/adan_optim/adamw.py", "csrc/rules.h"
FAULTS = [
    ("bias correction of v", ADAMW, "v.sqrt() / math.sqrt(1 - b2**t)", "v.sqrt()"),
    ("decay without lr", ADAMW, "p.mul_(1 - lr * decay)", "p.mul_(1 - decay)"),
    (
        "decay after the step",
        ADAMW,
        "            p.mul_(1 - lr * decay)\n        else:\n            g = g + decay * p\n        m.mul_(b1)",
        "            g = g + lr * decay * p\n        else:\n            g = g + decay * p\n        m.mul_(b1)",
    ),
    (
        "foreach: b1 for b2",
        ADAMW,
        "torch._foreach_addcmul_(v, g, g, 1 - b2)",
        "torch._foreach_addcmul_(v, g, g, 1 - b1)",
    ),
    ("foreach: decay dropped", ADAMW, "torch._foreach_mul_(p, 1 - lr * decay)", "pass"),
    ("foreach: m not corrected", ADAMW, "[-lr / (1 - b1**ti) for ti in t]", "[-lr for ti in t]"),
    (
        "amsgrad forgets the maximum",
        ADAMW,
        'torch.maximum(state["max_exp_avg_sq"], v, out=state["max_exp_avg_sq"])',
        'torch.maximum(state["max_exp_avg_sq"], v)',
    ),
    ("amsgrad divides by v", ADAMW, "v = torch.maximum(state", "torch.maximum(state"),
    ("amsgrad takes the minimum", ADAMW, "v = torch.maximum(state", "v = torch.minimum(state"),
    (
        "amsgrad's maximum becomes v",
        ADAMW,
        'torch.maximum(state["max_exp_avg_sq"], v, out=state["max_exp_avg_sq"])',
        'torch.maximum(state["max_exp_avg_sq"], v, out=v)',
    ),
    (
        "foreach: amsgrad divides by v",
        ADAMW,
        '            v = state["max_exp_avg_sq"]\n        denominator',
        "        denominator",
    ),
    ("foreach: amsgrad takes the minimum", ADAMW, "torch._foreach_maximum_", "torch._foreach_minimum_"),
    (
        "foreach: amsgrad changes v",
        ADAMW,
        'torch._foreach_maximum_(state["max_exp_avg_sq"], v)\n',
        'torch._foreach_maximum_(v, state["max_exp_avg_sq"])\n            torch._foreach_copy_(state["max_exp_avg_sq"], v)\n',
    ),
    (
        "amsgrad always on the fused path",
        ADAMW,
        '        if group["amsgrad"]:\n            return f',
        "        if False:\n            return f",
    ),
    ("amsgrad's state for all", ADAMW, 'if group["amsgrad"] else self.card.fused_states', ""),
    (
        "amsgrad's state signed",
        ADAMW,
        'nonnegative=("exp_avg_sq", "max_exp_avg_sq")',
        'nonnegative=("exp_avg_sq",)',
    ),
    ("amsgrad not taken over", ADAMW, "amsgrad=amsgrad)", "amsgrad=False)"),
]
