"""Prodigy with AdamW: arXiv 2306.06101, Algorithm 4, with d of the step before in all of a step."""

# ruff: noqa: E501 (exact texts)
import numpy as np

SHARED = ("d", "d_max", "d_numerator")


def sliced(x, slice_p):
    return x if slice_p == 1 else x.reshape(-1)[::slice_p]


def initial(p, *, slice_p=1, **_):
    names = ("s", "p0") if slice_p == 1 else ("s_slice", "p0_slice")
    start = sliced(p, slice_p).copy()
    return {name: np.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")} | {
        names[0]: np.zeros_like(start),
        names[1]: start,
    }


def observe(p, g, s, *, lr, d, d0, b3, c, safeguard_warmup, slice_p):
    """The new s, with its name, x0 with its name, and the parameter's term of the numerator."""
    sum_name, start_name = ("s", "p0") if slice_p == 1 else ("s_slice", "p0_slice")
    p, g, start = sliced(p, slice_p), sliced(g, slice_p), s[start_name]
    weight = d**2 / d0 * (1.0 if safeguard_warmup else lr * c)
    return {sum_name: b3 * s[sum_name] + weight * g, start_name: start}, c * (g * (start - p)).sum()


def share(found, hyper, states):
    first = hyper[0]
    d, d_max, d0 = (first[name] for name in ("d", "d_max", "d0"))
    b3 = first["betas"][-1] ** 0.5 if first["beta3"] is None else first["beta3"]
    top = max(h["lr"] for h in hyper)
    numerator = b3 * first["d_numerator"] + d**2 / d0 * top * sum(found)
    size = sum(np.abs(s[name]).sum() for s in states for name in ("s", "s_slice") if name in s)
    if not np.isfinite(numerator) or not 0 < size < np.inf:
        return {}
    estimate = first["d_coef"] * numerator / size
    if d == d0:
        d = max(d, estimate)
    d_max = max(d_max, estimate)
    grown = np.inf if first["growth_rate"] is None else first["growth_rate"] * d
    return {"d": min(d_max, grown), "d_max": d_max, "d_numerator": numerator}


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
    d,
    d_max,
    d_numerator,
    d0,
    beta3=None,
    d_coef=1.0,
    growth_rate=None,
    use_bias_correction=True,
    safeguard_warmup=False,
    slice_p=1,
    caution=False,
):
    b1, b2 = betas
    b3 = b2**0.5 if beta3 is None else beta3
    c1, c2 = (1 - b1**t, 1 - b2**t) if use_bias_correction else (1.0, 1.0)
    more, term = observe(
        p,
        g,
        s,
        lr=lr,
        d=d,
        d0=d0,
        b3=b3,
        c=np.sqrt(c2) / c1,
        safeguard_warmup=safeguard_warmup,
        slice_p=slice_p,
    )
    m = b1 * s["exp_avg"] + (1 - b1) * d * g
    v = b2 * s["exp_avg_sq"] + (1 - b2) * (d * g) ** 2
    u = m / c1 / (np.sqrt(v / c2) + d * eps)
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    return p - d * lr * (u + weight_decay * p), {"exp_avg": m, "exp_avg_sq": v, **more}, term


BASE = dict(lr=0.3, betas=(0.7, 0.85), eps=1e-8, weight_decay=0.0, d0=0.4, d_coef=3.0)
VARIANTS = {
    "beta1=0": {**BASE, "betas": (0.0, 0.5), "weight_decay": 0.1},
    "beta3": {**BASE, "beta3": 0.6, "eps": 0.1},
    "slow_growth": {**BASE, "growth_rate": 1.05, "weight_decay": 0.2},
    "no_bias_correction": {**BASE, "use_bias_correction": False, "weight_decay": 0.2, "eps": 0.1},
    "safeguard_warmup": {**BASE, "safeguard_warmup": True, "d_coef": 5.0},
    "slices": {**BASE, "slice_p": 3, "eps": 0.01},
}
CHANGES = {
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
UNIT = dict(d0=1.0, d_coef=1e-9)  # d stays 1
ALONE = dict(d_coef=1e-9)  # d stays d0
SLOW = dict(betas=(0.999999,) * 2, beta3=0.999999, d0=1e-9, d_coef=1e-9)
