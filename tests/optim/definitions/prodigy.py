"""Prodigy with AdamW: arXiv 2306.06101, Algorithm 4, with d of the step before in all of a step."""

# ruff: noqa: E501 (exact texts)
import numpy as np

SHARED = {"d": "d0", "d_max": "d0", "d_numerator": 0.0}


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

DISTANCE, RULES = "optim/adan_optim/distance.py", "csrc/rules.h"
FAULTS = [
    ("d without lr of the group in s", DISTANCE, ' else float(group["lr"]) * c)', " else c)"),
    ("s without the bias correction", DISTANCE, 'float(group["lr"]) * c)', 'float(group["lr"]))'),
    ("safeguard_warmup is ignored", DISTANCE, '(1.0 if group["safeguard_warmup"] else float(group["lr"]) * c)', '(float(group["lr"]) * c)'),
    ("s with d once", DISTANCE, 'rate = d / group["d0"] * d * (', 'rate = d / group["d0"] * ('),
    ("s does not decay", DISTANCE, "s.mul_(self._beta3).add_", "s.add_"),
    ("beta3 is the last beta", DISTANCE, 'math.sqrt(group["betas"][-1]) if group["beta3"]', 'group["betas"][-1] if group["beta3"]'),
    ("beta3 is ignored", DISTANCE, ' if group["beta3"] is None else group["beta3"])', ")"),
    ("x - x0", DISTANCE, "(g * (p0 - p))", "(g * (p - p0))"),
    ("the product without the bias correction", DISTANCE, "(c if t > 1 else 0.0)", "(t > 1)"),
    ("rounding of x0 counts at first", DISTANCE, " * (c if t > 1 else 0.0)", " * c"),
    ("|s| is the sum of s", DISTANCE, "whole(s.abs().sum(dtype=wide))", "whole(s.sum(dtype=wide))"),
    ("bias correction always", DISTANCE, 'return t if group["use_bias_correction"] else math.inf', "return t"),
    ("eps without d", DISTANCE, '"eps": d * group["eps"]', '"eps": group["eps"]'),
    ("lr without d", DISTANCE, '"lr": d * float(group["lr"])', '"lr": float(group["lr"])'),
    ("moments without d", DISTANCE, 'p, g * float(group["d"]), state', "p, g, state"),
    ("foreach: moments without d", DISTANCE, 'torch._foreach_mul(g, float(group["d"]))', "torch._foreach_mul(g, 1.0)"),
    ("foreach: bias correction of the first for all", DISTANCE, "[_time(ti, group) for ti in t]", "[_time(t[0], group)] * len(t)"),
    ("r with the lr of the first group", DISTANCE, 'top = _top([x["lr"] for x in self.param_groups], d)', 'top = float(group["lr"])'),
    ("r does not decay", DISTANCE, "r = self._beta3 * r + d", "r = r + d"),
    ("r with d once", DISTANCE, 'd / group["d0"] * d * top', 'd / group["d0"] * top'),
    ("d_coef is ignored", DISTANCE, 'found = group["d_coef"] * r / s', "found = r / s"),
    ("d falls", DISTANCE, "d_max = torch.maximum(d_max, found)", "d_max = found"),
    ("the first growth is limited", DISTANCE, 'd = torch.where(d == group["d0"], torch.maximum(d, found), d)', "pass"),
    ("growth_rate is ignored", DISTANCE, 'd_max if group["growth_rate"] is None else', "d_max if True else"),
    ("an unknown estimate counts", DISTANCE, "is_known = found.isfinite()", "is_known = found == found"),
    ("parameters without a gradient do not count", DISTANCE, "        for p in idle:\n", "        for p in ():\n"),
    ("terms of the step before", DISTANCE, "terms = iter(self._terms[len", "terms = iter(self._terms[:len"),
    ("x0 is the present x", DISTANCE, '        elif "p0" not in state:\n', "        else:\n"),
    ("x0 of the wrong elements", DISTANCE, 'return x.reshape(-1)[:: group["slice_p"]]', 'return x.reshape(-1)[group["slice_p"] - 1 :: group["slice_p"]]'),
    ("a restart of d by a checkpoint", DISTANCE, 'd = saved.get("d", saved["d0"])', 'd = saved["d0"]'),
    ("a checkpoint without r", DISTANCE, 'saved.get("d_numerator", 0.0)', "0.0"),
    ("a new group has its own d", DISTANCE, "        for group in self.param_groups:\n            group.update", "        for group in self.param_groups[:1]:\n            group.update"),
    ("sums of a shard alone", DISTANCE, "layout = placing(owner) if self.is_elementwise(owner, batch.group) else ()", "layout = ()"),
    ("a restart forgets x0", "optim/adan_optim/adan.py", 'moments = (*Adan.card.states, "pre_grad")', 'moments = (*self.card.states, "pre_grad")'),
    ("fused: s without d", RULES, "s_rate = h.d / h.d0 * h.d *", "s_rate = h.d / h.d0 *"),
    ("fused: s without the bias correction", RULES, "? 1 : h.lr * correction);", "? 1 : h.lr);"),
    ("fused: safeguard_warmup is ignored", RULES, "(h.safeguard_warmup != 0 ? 1 :", "(false ? 1 :"),
    ("fused: rounding of x0 counts at first", RULES, "product_rate = t == 1 ? 0 : correction;", "product_rate = correction;"),
    ("fused: x - x0", RULES, "(scaled * (s[own + 1] - p))", "(scaled * (p - s[own + 1]))"),
    ("fused: the gradient as given", RULES, "const T scaled = g * k.grad_scale;", "const T scaled = g;"),
    ("fused: |s| is s", RULES, "q[1] = sum < 0 ? -sum : sum;", "q[1] = sum;"),
    ("fused: s does not decay", RULES, "sum = k.s_beta * sum +", "sum = sum +"),
    ("fused: eps without d", RULES, "      base.eps *= h.d;\n", ""),
    ("fused: lr without d", RULES, "base.lr = h.d * h.lr;", "base.lr = h.lr;"),
    ("fused: bias correction always", RULES, "return h.bias_correction != 0 ? t : 1e300;", "return t;"),
    ("fused: v with d once", RULES, "      this->rest1 *= T(h.d);\n      this->rest2 *= T(h.d * h.d);\n", "      this->rest1 *= T(h.d);\n      this->rest2 *= T(h.d);\n"),
    ("fused: another decay for the correction", RULES, "(h, t, scale, h.base.beta1, h.base.beta2)", "(h, t, scale, h.base.beta2, h.base.beta2)"),
]  # fmt: skip
