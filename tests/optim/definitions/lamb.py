"""LAMB: arXiv 1904.00962, Algorithm 2, with phi the identity."""

# ruff: noqa: E501 (exact texts)
import numpy as np

STATES = ("exp_avg", "exp_avg_sq")


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
    bias_correction=True,
    trust_clip=False,
    always_adapt=True,
    caution=False,
):
    b1, b2 = betas
    m = b1 * s["exp_avg"] + (1 - b1) * g
    v = b2 * s["exp_avg_sq"] + (1 - b2) * g**2
    m_hat, v_hat = (m / (1 - b1**t), v / (1 - b2**t)) if bias_correction else (m, v)
    u = m_hat / (np.sqrt(v_hat) + eps)
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    update = u + weight_decay * p
    ratio = 1.0
    if always_adapt or weight_decay > 0:
        p_norm, update_norm = np.sqrt((p**2).sum()), np.sqrt((update**2).sum())
        if p_norm > 0 and update_norm > 0:
            ratio = p_norm / update_norm
        if trust_clip:
            ratio = min(ratio, 1.0)
    return p - lr * ratio * update, {"exp_avg": m, "exp_avg_sq": v}


BASE = dict(lr=0.07, betas=(0.7, 0.85), eps=1e-8, weight_decay=0.0)
VARIANTS = {
    "beta1=0": {**BASE, "betas": (0.0, 0.5), "weight_decay": 0.1},
    "no_bias_correction": {**BASE, "bias_correction": False, "weight_decay": 0.2, "eps": 0.1},
    "trust_clip": {**BASE, "trust_clip": True, "weight_decay": 0.3},
    "only_decayed": {**BASE, "always_adapt": False, "weight_decay": 0.2},
    "undecayed": {**BASE, "always_adapt": False, "eps": 0.1},
}
CHANGES = {"bias_correction": False, "trust_clip": True, "always_adapt": False}
GIVEN = {"always_adapt": {"weight_decay": 0.0}}
SLOW = dict(betas=(0.999999,) * 2)

LAMB = "optim/adan_optim/lamb.py"
FAULTS = [
    ("bias correction of m with b2", LAMB, "return (1 - b1**t, 1 - b2**t) if", "return (1 - b2**t, 1 - b2**t) if"),
    ("bias correction of v with b1", LAMB, "return (1 - b1**t, 1 - b2**t) if", "return (1 - b1**t, 1 - b1**t) if"),
    ("bias correction always", LAMB, 'if group["bias_correction"] else (1.0, 1.0)', "if True else (1.0, 1.0)"),
    ("m decays with b2", LAMB, "m.mul_(b1).add_(g, alpha=1 - b1)", "m.mul_(b2).add_(g, alpha=1 - b2)"),
    ("m without averaging", LAMB, "m.mul_(b1).add_(g, alpha=1 - b1)", "m.mul_(b1).add_(g)"),
    ("v of the gradient", LAMB, "add_(g.square(), alpha=1 - b2)", "add_(g, alpha=1 - b2)"),
    ("eps inside the root", LAMB, '(v / correction2).sqrt() + group["eps"]', '(v / correction2 + group["eps"]).sqrt()'),
    ("v corrected after the root", LAMB, "(v / correction2).sqrt()", "(v.sqrt() / correction2)"),
    ("decay outside of the ratio", LAMB, 'p.sub_(u, alpha=float(group["lr"]))', 'p.sub_(u - group["weight_decay"] * p, alpha=float(group["lr"]))'),
    ("no decay in the update", LAMB, ' + group["weight_decay"] * p\n', "\n"),
    ("ratio upside down", LAMB, "p_norm / u_norm)", "u_norm / p_norm)"),
    ("no step from zero", LAMB, "(p_norm == 0) | (u_norm == 0), 1.0", "(p_norm == 0) | (u_norm == 0), 0.0"),
    ("ratio of a zero parameter", LAMB, "(p_norm == 0) | (u_norm == 0)", "(u_norm == 0)"),
    ("ratio of a zero update", LAMB, "(p_norm == 0) | (u_norm == 0)", "(p_norm == 0)"),
    ("ratios of at least 1", LAMB, "ratio.clamp(max=1)", "ratio.clamp(min=1)"),
    ("ratio always clipped", LAMB, 'ratio.clamp(max=1) if group["trust_clip"] else ratio', "ratio.clamp(max=1)"),
    ("adapts always", LAMB, 'return bool(group["always_adapt"] or group["weight_decay"] > 0)', "return True"),
    ("always_adapt=False never adapts", LAMB, 'group["always_adapt"] or group["weight_decay"] > 0', 'group["always_adapt"]'),
    ("norm of the sum of absolute values", LAMB, "_ratio(p.norm(), u.norm(), group)", "_ratio(p.norm(1), u.norm(1), group)"),
    ("ratio to the gradient", LAMB, "_ratio(p.norm(), u.norm(), group)", "_ratio(p.norm(), g.norm(), group)"),
    ("foreach: m decays with b2", LAMB, "_foreach_lerp_(m, g, 1 - b1)", "_foreach_lerp_(m, g, 1 - b2)"),
    ("foreach: v is not decayed", LAMB, "        torch._foreach_mul_(v, b2)\n", ""),
    ("foreach: correction of v without the root", LAMB, "c1 / math.sqrt(c2) for", "c1 / c2 for"),
    ("foreach: eps before the correction", LAMB, 'c1 * group["eps"] for c1, _ in', 'group["eps"] / math.sqrt(c2) for _, c2 in'),
    ("foreach: correction of the first for all", LAMB, "[_corrections(ti, group) for ti in t]", "[_corrections(t[0], group) for _ in t]"),
    ("foreach: decay of 1", LAMB, 'torch._foreach_add_(u, p, alpha=group["weight_decay"])', "torch._foreach_add_(u, p)"),
    ("foreach: norm of all tensors together", LAMB, "(torch.stack(torch._foreach_norm(x)) for x in (p, u))", "(torch.stack(torch._foreach_norm(x)).norm().expand(len(x)) for x in (p, u))"),
    ("foreach: norms the wrong way round", LAMB, "p_norm, u_norm = (", "u_norm, p_norm = ("),
    ("foreach: no learning rate without ratios", LAMB, "torch._foreach_add_(p, u, alpha=-lr)", "torch._foreach_sub_(p, u)"),
    ('fused: sum of u', 'csrc/rules.h', 'q[0] = u * u;', 'q[0] = u;'),
    ('fused: norms the wrong way round', 'optim/adan_optim/lamb.py', 'u_norm, p_norm = (x.sqrt()', 'p_norm, u_norm = (x.sqrt()'),
    ('fused: no learning rate', 'optim/adan_optim/lamb.py', 'set_factors(batch, ratios * batch.group["lr"])', 'set_factors(batch, ratios)'),
    ('fused: no root', 'optim/adan_optim/lamb.py', '(x.sqrt() for x in block_totals', '(x for x in block_totals'),
    ('fused: the second pass counts, too', 'csrc/rules.h', 'counts = false;\n  static constexpr bool writes_param = true;\n', 'counts = true;\n  static constexpr bool writes_param = true;\n'),
    ('fused: no decay in the step', 'csrc/rules.h', '(root(s[1]) * k.root_rate + k.eps) + k.weight_decay * p;', '(root(s[1]) * k.root_rate + k.eps);'),
    ('fused: bias correction always', 'csrc/rules.h', 'root_rate(h.bias_correction != 0 ?', 'root_rate(true ?'),
    ('fused: the last lane is not summed', 'csrc/loops.h', 'for (int half = lanes / 2; half; half /= 2)', 'for (int half = lanes / 2; half > 1; half /= 2)'),
    ('fused: sums of the first block', 'csrc/loops.h', '[(at + i) / kBlock * Rule::sums + j] = total', '[i / kBlock * Rule::sums + j] = total'),
]  # fmt: skip
