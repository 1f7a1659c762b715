"""Prodigy with Adan: Algorithm 4 of arXiv 2306.06101 with the moments of arXiv 2208.06677, Algorithm 1.

Both gradients of a difference are multiplied by the d of this step. The estimate is Prodigy's, with the gradient
itself.
"""

# ruff: noqa: E501 (exact texts)
import numpy as np

SHARED = {"d": "d0", "d_max": "d0", "d_numerator": 0.0}


def sliced(x, slice_p):
    return x if slice_p == 1 else x.reshape(-1)[::slice_p]


def initial(p, *, slice_p=1, **_):
    names = ("s", "p0") if slice_p == 1 else ("s_slice", "p0_slice")
    start = sliced(p, slice_p).copy()
    moments = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad")
    return {name: np.zeros_like(p) for name in moments} | {names[0]: np.zeros_like(start), names[1]: start}


def share(found, hyper, states):
    first = hyper[0]
    beta3 = first["betas"][-1] ** 0.5 if first["beta3"] is None else first["beta3"]
    weight = first["d"] * first["d"] / first["d0"] * max(h["lr"] for h in hyper)
    r = beta3 * first["d_numerator"] + weight * np.sum(found)
    s = np.sum([np.abs(s[name]).sum() for s in states for name in s.keys() & {"s", "s_slice"}])
    if not (np.isfinite(r) and np.isfinite(s) and s > 0):
        return {}
    estimate = first["d_coef"] * r / s
    most = max(first["d_max"], estimate)
    before = max(first["d"], estimate) if first["d"] == first["d0"] else first["d"]
    limit = np.inf if first["growth_rate"] is None else before * first["growth_rate"]
    return {"d": min(most, limit), "d_max": most, "d_numerator": r}


def step(
    p,
    g,
    s,
    t,
    *,
    lr,
    betas,
    eps,
    weight_decay,
    d0=1e-6,
    d=None,
    d_max=None,
    d_numerator=0.0,
    beta3=None,
    d_coef=1.0,
    growth_rate=None,
    use_bias_correction=True,
    safeguard_warmup=False,
    slice_p=1,
    no_prox=False,
    caution=False,
):
    b1, b2, b3 = betas
    c1, c2, c3 = (1 - b**t if use_bias_correction else 1.0 for b in betas)
    sum_name, start_name = ("s", "p0") if slice_p == 1 else ("s_slice", "p0_slice")
    g_slice, start = sliced(g, slice_p), s[start_name]
    correction = np.sqrt(c3) / c1
    weight = d**2 / d0 if safeguard_warmup else d**2 / d0 * lr * correction
    total = (b3**0.5 if beta3 is None else beta3) * s[sum_name] + weight * g_slice
    term = correction * np.sum(g_slice * (start - sliced(p, slice_p)))

    diff = np.zeros_like(g) if t == 1 else g + s["neg_pre_grad"]
    m = b1 * s["exp_avg"] + (1 - b1) * d * g
    v = b2 * s["exp_avg_diff"] + (1 - b2) * d * diff
    n = b3 * s["exp_avg_sq"] + (1 - b3) * (d * (g + b2 * diff)) ** 2
    u = (m / c1 + b2 * v / c2) / (np.sqrt(n / c3) + d * eps)
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    rate = d * lr
    p = (1 - rate * weight_decay) * p - rate * u if no_prox else (p - rate * u) / (1 + rate * weight_decay)
    moments = {"exp_avg": m, "exp_avg_diff": v, "exp_avg_sq": n, "neg_pre_grad": -g}
    return p, {**moments, sum_name: total, start_name: start}, term


BASE = dict(lr=0.3, betas=(0.7, 0.6, 0.85), eps=1e-8, weight_decay=0.0, d0=0.4, d_coef=3.0)
VARIANTS = {
    "no_prox": {**BASE, "no_prox": True, "weight_decay": 0.4},
    "betas=0": {**BASE, "betas": (0.0, 0.0, 0.5), "weight_decay": 0.1},
    "beta3": {**BASE, "beta3": 0.6, "eps": 0.1},
    "slow_growth": {**BASE, "growth_rate": 1.05, "weight_decay": 0.2},
    "no_bias_correction": {**BASE, "use_bias_correction": False, "weight_decay": 0.2, "eps": 0.1},
    "safeguard_warmup": {**BASE, "safeguard_warmup": True, "d_coef": 5.0},
    "slices": {**BASE, "slice_p": 3, "eps": 0.01},
    "caution": {**BASE, "betas": (0.9, 0.1, 0.8), "weight_decay": 0.2, "eps": 0.05, "caution": True},
}
CHANGES = {
    "no_prox": True,
    "take_gradients": True,
    "beta3": 0.5,
    "d0": 0.1,
    "use_bias_correction": False,
    "safeguard_warmup": True,
    "slice_p": 2,
}
SHOWN_ELSEWHERE = {
    "d_coef": "test_prodigy.py::test_options_of_the_estimate",
    "growth_rate": "test_prodigy.py::test_options_of_the_estimate",
}
UNFUSED = ("slice_p",)
GIVEN = {"caution": {"betas": (0.98, 0.1, 0.99)}}
UNIT = dict(d0=1.0, d_coef=1e-9)  # d stays 1
ALONE = dict(d_coef=1e-9)  # d stays d0
SLOW = dict(betas=(0.999999,) * 3, beta3=0.999999, d0=1e-9, d_coef=1e-9)

PRODIGY, RULES = "optim/adan_optim/prodigy.py", "csrc/rules.h"
FAULTS = [
    ("the first difference is the gradient", PRODIGY, "(previous if t > 1 else -g)", "(previous)"),
    ("the previous gradient without d", PRODIGY, '(previous if t > 1 else -g) * float(group["d"])', "(previous if t > 1 else -g)"),
    ("the previous gradient is kept with d", PRODIGY, "        previous.copy_(g).neg_()\n", '        previous.copy_(g * float(group["d"])).neg_()\n'),
    ("foreach: the first difference is the gradient", PRODIGY, "[x if ti > 1 else -y for", "[x for"),
    ("foreach: the previous gradient without d", PRODIGY, 'torch._foreach_mul(now, float(group["d"]))', "torch._foreach_mul(now, 1.0)"),
    ("foreach: the previous gradient is not kept", PRODIGY, "        torch._foreach_copy_(previous, g)\n        torch._foreach_neg_(previous)\n", ""),
    ("fused: no first step without corrections", RULES, "      this->first = t == 1;\n", ""),
    ("fused: v without d", RULES, "      this->rest2 *= T(h.d);\n      this->rest3", "      this->rest3"),
    ("fused: n with d once", RULES, "this->rest3 *= T(h.d * h.d);", "this->rest3 *= T(h.d);"),
    ("fused: another decay for the correction", RULES, "(h, t, scale, h.base.beta1, h.base.beta3)", "(h, t, scale, h.base.beta1, h.base.beta2)"),
]  # fmt: skip
