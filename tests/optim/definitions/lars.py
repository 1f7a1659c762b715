"""LARS: arXiv 1708.03888, equation 6 and Algorithm 1, with the learning rate outside of the momentum."""

# ruff: noqa: E501 (exact texts)
import numpy as np


def initial(p, *, momentum, **_):
    return {"momentum_buffer": np.zeros_like(p)} if momentum else {}


def step(
    p,
    g,
    s,
    t,
    *,
    lr,
    momentum,
    eps,
    weight_decay,
    trust_coefficient,
    nesterov=False,
    trust_clip=False,
    always_adapt=False,
    caution=False,
):
    rate = 1.0
    if always_adapt or weight_decay > 0:
        p_norm, g_norm = np.sqrt((p**2).sum()), np.sqrt((g**2).sum())
        if p_norm > 0 and g_norm > 0:
            rate = trust_coefficient * p_norm / (g_norm + weight_decay * p_norm + eps)
        if trust_clip:
            rate = min(rate / lr, 1.0)
    g = g + weight_decay * p
    u = rate * g
    if momentum == 0:
        return p - lr * u, {}
    v = momentum * s["momentum_buffer"] + u
    u = u + momentum * v if nesterov else v
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    return p - lr * u, {"momentum_buffer": v}


BASE = dict(lr=0.3, momentum=0.7, eps=1e-8, weight_decay=0.0, trust_coefficient=0.2, always_adapt=True)
VARIANTS = {
    "no_momentum": {**BASE, "momentum": 0.0, "weight_decay": 0.1},
    "nesterov": {**BASE, "nesterov": True, "weight_decay": 0.2},
    "trust_clip": {**BASE, "trust_clip": True, "weight_decay": 0.3, "trust_coefficient": 0.35},
    "only_decayed": {**BASE, "always_adapt": False, "weight_decay": 0.2},
    "undecayed": {**BASE, "always_adapt": False, "lr": 0.02},
}
CHANGES = {
    "momentum": 0.5,
    "trust_coefficient": 0.1,
    "nesterov": True,
    "trust_clip": True,
    "always_adapt": False,
}
GIVEN = {"always_adapt": {"weight_decay": 0.0}}
UNIT = dict(trust_coefficient=1.0, momentum=0.0)
SLOW = dict(momentum=0.999999)

LARS = "optim/adan_optim/lars.py"
FAULTS = [
    ("decay outside of the rate", LARS, 'u = decayed = g + group["weight_decay"] * p\n', "u = decayed = g.clone()\n"),
    ("norm of the decayed gradient", LARS, "_rate(p.norm(), g.norm(), group)", "_rate(p.norm(), u.norm(), group)"),
    ("norm of the sum of absolute values", LARS, "_rate(p.norm(), g.norm(), group)", "_rate(p.norm(1), g.norm(1), group)"),
    ("no decay in the rate", LARS, 'g_norm + group["weight_decay"] * p_norm + ', "g_norm + "),
    ("no eps in the rate", LARS, ' * p_norm + group["eps"])', " * p_norm)"),
    ("no trust coefficient", LARS, 'rate = group["trust_coefficient"] * p_norm', "rate = p_norm"),
    ("no step from zero", LARS, "(g_norm == 0), 1.0, rate", "(g_norm == 0), 0.0, rate"),
    ("rate of a zero parameter", LARS, "(p_norm == 0) | (g_norm == 0)", "(g_norm == 0)"),
    ("rate of a zero gradient", LARS, "(p_norm == 0) | (g_norm == 0)", "(p_norm == 0)"),
    ("clipped without lr", LARS, '(rate / lr).clamp(max=1)', "rate.clamp(max=1)"),
    ("clipped from below", LARS, ".clamp(max=1)", ".clamp(min=1)"),
    ("always clipped", LARS, 'clamp(max=1) if group["trust_clip"] else rate', "clamp(max=1)"),
    ("adapts always", LARS, 'bool(group["always_adapt"] or group["weight_decay"] > 0)', "True"),
    ("always_adapt=False never adapts", LARS, 'group["always_adapt"] or group["weight_decay"] > 0', 'group["always_adapt"]'),
    ("momentum with dampening", LARS, "mul_(momentum).add_(u)", "mul_(momentum).add_(u, alpha=1 - momentum)"),
    ("Nesterov without momentum", LARS, "u + momentum * v if", "u + v if"),
    ("Nesterov always", LARS, 'u = u + momentum * v if group["nesterov"] else v', "u = u + momentum * v"),
    ("foreach: no decay", LARS, 'list(torch._foreach_add(g, p, alpha=group["weight_decay"])) if group["weight_decay"] else g', "g"),
    ("foreach: norm of all tensors together", LARS, "(torch.stack(torch._foreach_norm(x)) for x in (p, g))", "(torch.stack(torch._foreach_norm(x)).norm().expand(len(x)) for x in (p, g))"),
    ("foreach: norms the wrong way round", LARS, "p_norm, g_norm = (torch.stack(", "g_norm, p_norm = (torch.stack("),
    ("foreach: norm of the decayed gradient", LARS, "(torch.stack(torch._foreach_norm(x)) for x in (p, g))", "(torch.stack(torch._foreach_norm(x)) for x in (p, u))"),
    ("foreach: momentum does not decay", LARS, "            torch._foreach_mul_(v, momentum)\n", ""),
    ("foreach: Nesterov without momentum", LARS, "torch._foreach_add(u, v, alpha=momentum)", "torch._foreach_add(u, v)"),
    ("foreach: changes the gradient", LARS, 'u = torch._foreach_mul(u, _rate', 'torch._foreach_mul_(u, _rate'),
    ("momentum of 1 accepted", LARS, 'if group["momentum"] >= 1:', 'if group["momentum"] > 1:'),
    ('fused: norm of the unscaled gradient', 'optim/adan_optim/lars.py', '(g_norm * scale).abs()', 'g_norm'),
    ('fused: no momentum', 'csrc/rules.h', 's[0] = k.momentum * s[0] + step;', 's[0] = step;'),
    ('fused: nesterov without momentum', 'csrc/rules.h', 'behind(h.nesterov != 0 ? h.momentum : 1)', 'behind(1)'),
    ('fused: decay without the rate', 'csrc/rules.h', 'const T step = x * (g * k.grad_scale + k.weight_decay * p);', 'const T step = x * g * k.grad_scale + k.weight_decay * p;'),
    ('fused: no decay without momentum', 'csrc/rules.h', 'p -= k.lr * (x * (g * k.grad_scale + k.weight_decay * p));', 'p -= k.lr * (x * (g * k.grad_scale));'),
    ('fused: the norm of what is stored', 'optim/adan_optim/engine/fused.py', 'return batch.storage.load_params(batch.params, batch.states)', 'return [p.float() for p in batch.params]'),
]  # fmt: skip
