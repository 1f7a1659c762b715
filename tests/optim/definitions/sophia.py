"""Sophia: arXiv 2305.14342, Algorithm 3, with rho for gamma; a step reads the mean of the estimates, h."""

import numpy as np

STATES = ("exp_avg", "hessian")


def step(p, g, s, t, *, lr, betas, rho, eps, weight_decay, caution=False):
    m = betas[0] * s["exp_avg"] + (1 - betas[0]) * g
    u = np.clip(m / np.maximum(rho * s["hessian"], eps), -1, 1)
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    p = p - lr * weight_decay * p
    return p - lr * u, {"exp_avg": m, "hessian": s["hessian"]}


def mean(h, estimate, *, betas):
    """What an estimate of the Hessian's diagonal makes of h."""
    return betas[1] * h + (1 - betas[1]) * estimate


def prepare(optimizer):
    """Estimates of either sign, after which some steps are clipped and some are not."""
    import torch

    params = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.update_hessian(
        {
            p: torch.linspace(-4, 40, p.numel(), dtype=torch.float64, device=p.device).view(p.shape)
            for p in params
        }
    )


# With a smaller eps and h < 0 the sign of m decides, and where m is next to 0 so does its rounding.
BASE = dict(lr=0.07, betas=(0.7, 0.8), rho=0.5, eps=0.01, weight_decay=0.0)
VARIANTS = {
    "beta1=0": {**BASE, "betas": (0.0, 0.5), "weight_decay": 0.1},
    "rho": {**BASE, "rho": 0.05, "weight_decay": 0.2},
}
CHANGES = {"rho": 0.1, "betas": (0.6, 0.3)}
SLOW = dict(betas=(0.999999,) * 2)
SOPHIA, RULES = "optim/adan_optim/sophia.py", "csrc/rules.h"
FAULTS = [
    ("not clipped", SOPHIA, ".clamp(-1, 1)", ""),
    ("not clipped below", SOPHIA, ".clamp(-1, 1)", ".clamp(max=1)"),
    ("no rho", SOPHIA, '(group["rho"] * h).clamp', "h.clamp"),
    ("eps added", SOPHIA, '(group["rho"] * h).clamp(min=group["eps"])', '(group["rho"] * h + group["eps"])'),
    (
        "rho on the outside",
        SOPHIA,
        '(group["rho"] * h).clamp(min=group["eps"])',
        '(group["rho"] * h.clamp(min=group["eps"]))',
    ),
    ("absolute Hessian", SOPHIA, '(group["rho"] * h).clamp', '(group["rho"] * h.abs()).clamp'),
    ("the gradient in place of m", SOPHIA, "u = (m / (group", "u = (g / (group"),
    (
        "decay without lr",
        SOPHIA,
        'p.mul_(1 - lr * group["weight_decay"]).sub_',
        'p.mul_(1 - group["weight_decay"]).sub_',
    ),
    (
        "decay after the step",
        SOPHIA,
        'p.mul_(1 - lr * group["weight_decay"]).sub_(u, alpha=lr)',
        'p.sub_(u, alpha=lr).mul_(1 - lr * group["weight_decay"])',
    ),
    ("foreach: not clipped above", SOPHIA, "        torch._foreach_clamp_max_(u, 1.0)\n", ""),
    ("foreach: not clipped below", SOPHIA, "        torch._foreach_clamp_min_(u, -1.0)\n", ""),
    (
        "foreach: the Hessian changed",
        SOPHIA,
        'denominator = torch._foreach_mul(h, group["rho"])',
        'torch._foreach_mul_(denominator := h, group["rho"])',
    ),
    ("foreach: no eps", SOPHIA, '        torch._foreach_clamp_min_(denominator, group["eps"])\n', ""),
    (
        "foreach: m divided in place",
        SOPHIA,
        "u = list(torch._foreach_div(m, denominator))",
        "torch._foreach_div_(u := m, denominator)",
    ),
    ("fused: not clipped below", RULES, "    step = step < -1 ? T(-1) : step;\n", ""),
    ("fused: not clipped above", RULES, "    step = step > 1 ? T(1) : step;\n", ""),
    ("fused: no eps", RULES, "(scaled < k.eps ? k.eps : scaled)", "scaled"),
    ("fused: a NaN is lost", RULES, "(scaled < k.eps ? k.eps : scaled)", "(scaled > k.eps ? scaled : k.eps)"),
    (
        "fused: b2 for b1",
        SOPHIA,
        'return float(group["lr"]), group["betas"][0]',
        'return float(group["lr"]), group["betas"][1]',
    ),
    ("estimates: b1 for b2", SOPHIA, '1 - group["betas"][1]', '1 - group["betas"][0]'),
    (
        "estimates take the place of h",
        SOPHIA,
        'h.lerp_(local(estimate).to(h), 1 - group["betas"][1])',
        "h.copy_(estimate)",
    ),
    ("estimates rounded to nearest", SOPHIA, "if small else None", "if False else None"),
    ("estimates of the wrong shape", SOPHIA, "if estimates[p].shape != p.shape", "if False"),
    ("estimates for nobody", SOPHIA, "if len(owners) < len(estimates)", "if False"),
    ("Gauss-Newton: no B", SOPHIA, "len(rows) * _wide(g).square()", "_wide(g).square()"),
    (
        "Gauss-Newton: the most likely label",
        SOPHIA,
        "torch.multinomial(rows.detach().softmax(-1), 1, generator=generator).squeeze(1)",
        "rows.detach().argmax(-1)",
    ),
    ("Gauss-Newton: another generator", SOPHIA, "softmax(-1), 1, generator=generator)", "softmax(-1), 1)"),
    ("Hutchinson: no u", SOPHIA, "_wide(u) * _wide(hu)", "_wide(hu)"),
    ("Hutchinson: uniform noise", SOPHIA, "torch.randn(g.shape", "torch.rand(g.shape"),
    (
        "Hutchinson: another generator",
        SOPHIA,
        "torch.randn(g.shape, generator=generator, ",
        "torch.randn(g.shape, ",
    ),
]
