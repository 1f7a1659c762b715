"""NAdamW: arXiv 1910.05446, Table 1, with decoupled decay; with momentum_decay, Dozat's schedule (ICLR 2016 workshop)."""

# ruff: noqa: E501 (exact texts)
import numpy as np

STATES = ("exp_avg", "exp_avg_sq")


def step(p, g, s, t, *, lr, betas, eps, weight_decay, momentum_decay=0.0, caution=False):
    b1, b2 = betas
    m = b1 * s["exp_avg"] + (1 - b1) * g
    v = b2 * s["exp_avg_sq"] + (1 - b2) * g**2
    if momentum_decay:
        mu = b1 * (1 - 0.5 * 0.96 ** (momentum_decay * np.arange(1, t + 2)))
        ahead = mu[-1] * m / (1 - mu.prod()) + (1 - mu[-2]) * g / (1 - mu[:-1].prod())
    else:
        ahead = (b1 * m + (1 - b1) * g) / (1 - b1**t)
    u = ahead / (np.sqrt(v / (1 - b2**t)) + eps)
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    return p - lr * (u + weight_decay * p), {"exp_avg": m, "exp_avg_sq": v}


BASE = dict(lr=0.07, betas=(0.7, 0.85), eps=1e-8, weight_decay=0.0)
VARIANTS = {
    "beta1=0": {**BASE, "betas": (0.0, 0.5), "weight_decay": 0.1},
    "momentum_decay": {**BASE, "momentum_decay": 0.8, "weight_decay": 0.2, "eps": 0.01},
}
CHANGES = {"momentum_decay": 0.5}
UNFUSED = ("momentum_decay",)
SLOW = dict(betas=(0.999999,) * 2)

NADAMW, RULES = "optim/adan_optim/nadamw.py", "csrc/rules.h"
FAULTS = [
    ("no Nesterov", NADAMW, "u = (of_m * m + of_g * g) /", "u = m / (1 - b1**t) /"),
    ("m not corrected", NADAMW, "return b1 / (1 - b1**t), (1", "return b1, (1"),
    ("g not corrected", NADAMW, "(1 - b1) / (1 - b1**t)\n", "1 - b1\n"),
    ("weights the wrong way round", NADAMW, "return b1 / (1 - b1**t), (1 - b1) / (1 - b1**t)", "return (1 - b1) / (1 - b1**t), b1 / (1 - b1**t)"),
    ("b2 in m", NADAMW, "m.mul_(b1).add_(g, alpha=1 - b1)", "m.mul_(b2).add_(g, alpha=1 - b2)"),
    ("bias correction of v", NADAMW, "v.sqrt() / math.sqrt(1 - b2**t)", "v.sqrt()"),
    ("decay without lr", NADAMW, "p.mul_(1 - lr * group", "p.mul_(1 - group"),
    ("no caution", NADAMW, "sub_(cautious(u, g, group), alpha=lr)", "sub_(u, alpha=lr)"),
    ("the momentum of this step twice", NADAMW, "_momentum(b1, decay, t + 1) / (1", "_momentum(b1, decay, t) / (1"),
    ("the product without the next momentum", NADAMW, "_products(b1, decay, int(t) + 1)", "_products(b1, decay, int(t))"),
    ("no half in the schedule", NADAMW, "1 - 0.5 * 0.96", "1 - 0.96"),
    ("fused with momentum_decay", NADAMW, 'if group["momentum_decay"]:', "if False:"),
    ("foreach: g twice", NADAMW, "u = torch._foreach_mul(m, of_m)", "u = torch._foreach_mul(g, of_m)"),
    ("foreach: no gradient in u", NADAMW, "        torch._foreach_add_(u, torch._foreach_mul(g, of_g))\n", ""),
    ("foreach: b1 in v", NADAMW, "torch._foreach_addcmul_(v, g, g, 1 - b2)", "torch._foreach_addcmul_(v, g, g, 1 - b1)"),
    ("foreach: v not corrected", NADAMW, "        torch._foreach_div_(denominator, [math.sqrt(1 - b2**ti) for ti in t])\n", ""),
    ("foreach: decay dropped", NADAMW, 'torch._foreach_mul_(p, 1 - lr * group["weight_decay"])', "pass"),
    ("foreach: no caution", NADAMW, "cautious_many(list(u), g, group)", "list(u)"),
    ("foreach: steps of the first", NADAMW, "(_weights(ti, group) for ti in t)", "(_weights(t[0], group) for ti in t)"),
    ("fused: no Nesterov", RULES, "return k.m_rate * ahead /", "return k.m_rate * s[0] /"),
    ("fused: ahead with b2", RULES, "const T ahead = k.beta1 * s[0] + k.rest1 * g;", "const T ahead = k.beta2 * s[0] + k.rest2 * g;"),
    ("fused: betas swapped", NADAMW, '*group["betas"], group["eps"]', '*reversed(group["betas"]), group["eps"]'),
]  # fmt: skip
