"""AdEMAMix: arXiv 2409.03137, Algorithm 1; alpha grows in a straight line, and so does the half-life of b3."""

# ruff: noqa: E501 (exact texts)
import numpy as np

STATES = ("exp_avg", "exp_avg_sq", "exp_avg_slow")


def half_life(beta):
    return np.log(0.5) / np.log(beta)


def step(
    p, g, s, t, *, lr, betas, eps, weight_decay, alpha=5.0, alpha_warmup=0, beta3_warmup=0, caution=False
):
    b1, b2, b3 = betas
    if t < beta3_warmup:
        r = t / beta3_warmup
        b3 = min(b3, 0.5 ** (1 / ((1 - r) * half_life(b1) + r * half_life(b3))))
    if t < alpha_warmup:
        alpha = alpha * t / alpha_warmup
    fast = b1 * s["exp_avg"] + (1 - b1) * g
    slow = b3 * s["exp_avg_slow"] + (1 - b3) * g
    v = b2 * s["exp_avg_sq"] + (1 - b2) * g**2
    u = (fast / (1 - b1**t) + alpha * slow) / (np.sqrt(v / (1 - b2**t)) + eps)
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    return p - lr * (u + weight_decay * p), {"exp_avg": fast, "exp_avg_sq": v, "exp_avg_slow": slow}


BASE = dict(lr=0.07, betas=(0.7, 0.85, 0.95), eps=1e-8, weight_decay=0.0, alpha=3.0)
VARIANTS = {
    "beta1=0": {**BASE, "betas": (0.0, 0.5, 0.8), "weight_decay": 0.1},
    "warmup": {**BASE, "alpha_warmup": 3, "beta3_warmup": 4, "weight_decay": 0.2, "eps": 0.01},
    "long_warmup": {**BASE, "alpha_warmup": 50, "beta3_warmup": 30, "eps": 0.1},
    "beta3<beta1": {**BASE, "betas": (0.9, 0.6, 0.3), "beta3_warmup": 20},
}
CHANGES = {"alpha": 1.0, "alpha_warmup": 10, "beta3_warmup": 10}
SLOW = dict(betas=(0.999999,) * 3)
UNIT = dict(alpha=0.0)

MIX, RULES = "optim/adan_optim/ademamix.py", "csrc/rules.h"
FAULTS = [
    ("no slow mean", MIX, "(fast / (1 - b1**t) + alpha * slow)", "(fast / (1 - b1**t))"),
    ("the slow mean corrected", MIX, "+ alpha * slow)", "+ alpha * slow / (1 - b3**t))"),
    ("the fast mean not corrected", MIX, "(fast / (1 - b1**t) +", "(fast +"),
    ("b1 in the slow mean", MIX, "slow.mul_(b3).add_(g, alpha=1 - b3)", "slow.mul_(b1).add_(g, alpha=1 - b1)"),
    ("v not corrected", MIX, "v.sqrt() / math.sqrt(1 - b2**t)", "v.sqrt()"),
    ("decay without lr", MIX, "p.mul_(1 - lr * group", "p.mul_(1 - group"),
    ("no caution", MIX, "sub_(cautious(u, g, group), alpha=lr)", "sub_(u, alpha=lr)"),
    ("no warm-up of alpha", MIX, "alpha * t / steps if t < steps else alpha", "alpha"),
    ("alpha grows on", MIX, "alpha * t / steps if t < steps else alpha", "alpha * t / steps if steps else alpha"),
    ("no warm-up of b3", MIX, 'if t >= group["beta3_warmup"] or b3 <= b1:', "if True:"),
    ("b3 itself grows in a straight line", MIX, "math.exp(1 / (since + part / math.log(b3)))", "(1 - part) * b1 + part * b3"),
    ("the warm-up begins at 0", MIX, "since = (1 - part) / math.log(b1) if b1 else 0.0", "since = 0.0"),
    ("b3 may pass its end", MIX, " or b3 <= b1:", ":"),
    ("foreach: no slow mean", MIX, "        torch._foreach_add_(u, torch._foreach_mul(slow, alpha))\n", ""),
    ("foreach: alpha of the first", MIX, "(warmed_up(ti, group) for ti in t)", "(warmed_up(t[0], group) for ti in t)"),
    ("foreach: b2 in the fast mean", MIX, "torch._foreach_lerp_(fast, g, 1 - b1)", "torch._foreach_lerp_(fast, g, 1 - b2)"),
    ("foreach: the slow mean sums", MIX, "torch._foreach_mul(g, [1 - x for x in b3])", "g"),
    ("foreach: decay dropped", MIX, 'torch._foreach_mul_(p, 1 - lr * group["weight_decay"])', "pass"),
    ("foreach: no caution", MIX, "cautious_many(list(u), g, group)", "list(u)"),
    ("fused: no slow mean", RULES, "(k.m_rate * s[0] + k.slow_rate * s[2]) /", "(k.m_rate * s[0]) /"),
    ("fused: b1 in the slow mean", RULES, "s[2] = k.beta3 * s[2] + k.rest3 * g;", "s[2] = k.beta1 * s[2] + k.rest1 * g;"),
    ("fused: no warm-up of alpha", RULES, "t < h.alpha_warmup ? h.alpha * t / h.alpha_warmup : h.alpha", "h.alpha"),
    ("fused: b3 may pass its end", RULES, "return b3 < h.beta3 ? b3 : h.beta3;", "return b3;"),
    ("fused: no warm-up of b3", RULES, "if (!(t < h.beta3_warmup)) return h.beta3;", "if (true) return h.beta3;"),
    ("fused: warm-ups swapped", MIX, 'group["alpha_warmup"], group["beta3_warmup"]\n', 'group["beta3_warmup"], group["alpha_warmup"]\n'),
]  # fmt: skip
