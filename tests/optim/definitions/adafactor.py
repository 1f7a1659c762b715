"""Adafactor: arXiv 1804.04235, Algorithms 4 and 5, with momentum and decay of the authors' code."""

# ruff: noqa: E501 (exact texts)
import numpy as np


def initial(p, *, beta1, **_):
    states = {"exp_avg": np.zeros_like(p)} if beta1 else {}
    if p.ndim < 2:
        return {**states, "exp_avg_sq": np.zeros_like(p)}
    rows, columns = np.zeros(p.shape[:-1]), np.zeros(p.shape[:-2] + p.shape[-1:])
    return {**states, "exp_avg_sq_row": rows, "exp_avg_sq_col": columns}


def mean(x, axis):
    return x.sum(axis) / max(x.shape[axis], 1)


def rms(x):
    return np.sqrt((x**2).mean()) if x.size else 0.0


def step(
    p,
    g,
    s,
    t,
    *,
    lr,
    eps,
    weight_decay,
    eps_scale,
    clip_threshold,
    decay_rate,
    beta1,
    scale_parameter=True,
    relative_step=True,
    warmup_init=False,
    caution=False,
):
    rho = lr
    if relative_step:
        rho = min(1e-6 * t if warmup_init else lr, lr, 1 / np.sqrt(t))
    alpha = max(eps_scale, rms(p)) * rho if scale_parameter else rho
    b2 = 1 - float(t) ** -decay_rate
    new = {}
    if p.ndim < 2:
        v = new["exp_avg_sq"] = b2 * s["exp_avg_sq"] + (1 - b2) * (g**2 + eps)
    else:
        r = new["exp_avg_sq_row"] = b2 * s["exp_avg_sq_row"] + (1 - b2) * (mean(g**2, -1) + eps)
        c = new["exp_avg_sq_col"] = b2 * s["exp_avg_sq_col"] + (1 - b2) * (mean(g**2, -2) + eps)
        if p.size == 0:
            return p, {**s, **new}
        v = r[..., :, None] * c[..., None, :] / r.mean(-1)[..., None, None]
    u = g / np.sqrt(v)
    u = alpha * u / max(1.0, rms(u) / clip_threshold)
    if beta1:
        u = new["exp_avg"] = beta1 * s["exp_avg"] + (1 - beta1) * u
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    return p - alpha * weight_decay * p - u, new


def fuses(p, options):
    """Whether the fused rule is for a parameter."""
    small = options.get("state_dtype") in ("bfloat16", "int8")
    return p.ndim <= 2 and not (p.ndim < 2 and small) and p.is_contiguous() and (p.ndim < 2 or p.shape[1])


BASE = dict(
    lr=0.3,
    eps=1e-8,
    weight_decay=0.0,
    eps_scale=0.01,
    clip_threshold=0.8,
    decay_rate=0.6,
    beta1=0.7,
    relative_step=False,
)
VARIANTS = {
    "no_momentum": {**BASE, "beta1": 0.0, "weight_decay": 0.1},
    "relative": {**BASE, "relative_step": True, "weight_decay": 0.2},
    "unscaled": {**BASE, "scale_parameter": False, "weight_decay": 0.2, "lr": 0.1},
    "large_eps_scale": {**BASE, "eps_scale": 1.3, "weight_decay": 0.1},
    "unclipped": {**BASE, "clip_threshold": 100.0, "decay_rate": 1.0},
    "warmup": {**BASE, "relative_step": True, "warmup_init": True, "lr": 1e-5, "beta1": 0.0},
}
CHANGES = {
    "eps_scale": 2.0,
    "clip_threshold": 0.5,
    "decay_rate": 0.9,
    "beta1": 0.3,
    "scale_parameter": False,
    "relative_step": True,
    "warmup_init": True,
}
GIVEN = {
    "caution": {"beta1": 0.5},
    "relative_step": {"lr": 0.9},
    "warmup_init": {"relative_step": True},
}
UNIT = dict(eps=1e-30, clip_threshold=1.0, beta1=0.0)
SLOW = dict(beta1=0.999999)
ROUNDINGS = 24

FILE = "optim/adan_optim/adafactor.py"
FAULTS = [
    ("rows the wrong way round", FILE, 'r = state["exp_avg_sq_row"].mul_(1 - new).add_(_mean(square, -1) + eps, alpha=new)', 'r = state["exp_avg_sq_row"].mul_(1 - new).add_(_mean(square, -1).flip(-1) + eps, alpha=new)'),
    ("rows are sums", FILE, "_mean(square, -1) + eps", "square.sum(-1) + eps"),
    ("columns are sums", FILE, "_mean(square, -2) + eps", "square.sum(-2) + eps"),
    ("not divided by the mean of rows", FILE, "(r / r.mean(-1, keepdim=True)).rsqrt()", "r.rsqrt()"),
    ("mean over all rows of all matrices", FILE, "(r / r.mean(-1, keepdim=True))", "(r / r.mean())"),
    ("no eps in rows", FILE, "_mean(square, -1) + eps", "_mean(square, -1)"),
    ("no eps in vectors", FILE, "add_(square + eps,", "add_(square,"),
    ("no root", FILE, "alpha=new).sqrt()", "alpha=new)"),
    ("constant decay", FILE, 't ** -group["decay_rate"]  # new', '0.2 + 0 * group["decay_rate"]  # new'),
    ("decay with the wrong sign", FILE, 't ** -group["decay_rate"]  # new', '1 - t ** -group["decay_rate"]  # new'),
    ("never clipped", FILE, '(_rms(u) / group["clip_threshold"]).clamp(min=1)', "1.0"),
    ("scaled up as well", FILE, '(_rms(u) / group["clip_threshold"]).clamp(min=1)', '(_rms(u) / group["clip_threshold"])'),
    ("gradient clipped", FILE, '(_rms(u) / group["clip_threshold"])', '(_rms(g) / group["clip_threshold"])'),
    ("norm in place of the RMS", FILE, "norm / math.sqrt(max(x.numel(), 1))", "norm"),
    ("eps_scale added", FILE, '_rms(p).clamp(min=group["eps_scale"])', '(_rms(p) + group["eps_scale"])'),
    ("scaled always", FILE, 'if group["scale_parameter"] else 1.0', "if True else 1.0"),
    ("decay by lr", FILE, 'p.sub_(u + a * group["weight_decay"] * p)', 'p.sub_(u + float(group["lr"]) * group["weight_decay"] * p)'),
    ("decay in the momentum", FILE, "u *= a / (", 'u += group["weight_decay"] * p\n        u *= a / ('),
    ("momentum without averaging", FILE, "add_(u, alpha=1 - beta1)", "add_(u)"),
    ("relative step is the larger", FILE, "return min(lr, 1 / math.sqrt(t))", "return max(lr, 1 / math.sqrt(t))"),
    ("relative always", FILE, 'if group["relative_step"] else lr', "if True else lr"),
    ("1 / t", FILE, "1 / math.sqrt(t)", "1 / t"),
    ("no warm-up", FILE, "min(lr, 1e-6 * t)", "lr"),
    ("foreach: rows and columns swapped", FILE, "((r, -1), (c, -2))", "((r, -2), (c, -1))"),
    ("foreach: no eps in the factors", FILE, '                torch._foreach_add_(means, group["eps"])\n', ""),
    ("foreach: no eps in vectors", FILE, '            torch._foreach_add_(square, group["eps"])\n', ""),
    ("foreach: decay of the first for all", FILE, '[ti ** -group["decay_rate"] for ti in t]', '[t[0] ** -group["decay_rate"] for _ in t]'),
    ("foreach: mean over all rows", FILE, "(x / x.mean(-1, keepdim=True)).rsqrt_()", "(x / x.mean()).rsqrt_()"),
    ("foreach: never clipped", FILE, 'sizes / (_rms_many(u) / group["clip_threshold"]).clamp(min=1)', "sizes"),
    ("foreach: RMS without the count", FILE, "torch.stack(torch._foreach_norm(x)) / counts.sqrt()", "torch.stack(torch._foreach_norm(x))"),
    ("foreach: no eps_scale", FILE, '_rms_many(p).clamp(min=group["eps_scale"])', "_rms_many(p)"),
    ("foreach: decay by the clipped step", FILE, '(1 - sizes * group["weight_decay"])', '(1 - factors * group["weight_decay"])'),
    ("foreach: momentum of 1 - beta1", FILE, "_foreach_lerp_(m, u, 1 - beta1)", "_foreach_lerp_(m, u, beta1)"),
    ('fused: means over the other side', 'optim/adan_optim/adafactor.py', '[1 / columns[owners[0]], 1 / rows[owners[1]]]', '[1 / rows[owners[0]], 1 / columns[owners[1]]]'),
    ('fused: mean square of u unscaled', 'optim/adan_optim/adafactor.py', 'totals(a.square() * weighted, counts[0]) * scale**2', 'totals(a.square() * weighted, counts[0])'),
    ('fused: RMS over one row', 'optim/adan_optim/adafactor.py', '(squares / numels).sqrt()', 'squares.sqrt()'),
    ('fused: no decay', 'optim/adan_optim/adafactor.py', '(sizes * group["weight_decay"])', '(sizes * 0)'),
    ('fused: never clipped', 'optim/adan_optim/adafactor.py', '(sizes / clip)', '(sizes * 1)'),
    ('fused: rows not over their mean', 'optim/adan_optim/adafactor.py', 'of_rows /= (totals', 'of_rows / (totals'),
    ('fused: momentum of 1 - beta1', 'csrc/rules.h', 's[0] = k.beta1 * s[0] + k.rest1 * (k.lr * (x', 's[0] = k.rest1 * s[0] + k.beta1 * (k.lr * (x'),
    ('fused: second moments not kept', 'optim/adan_optim/adafactor.py', '        torch._foreach_copy_(states, list(torch.split(v, [len(x) for x in states])))\n', ''),
    ('fused: step not counted', 'optim/adan_optim/adafactor.py', 'for state in batch.states]).double() + 1', 'for state in batch.states]).double()'),
    ('sums: parts of a row lost', 'csrc/sums.h', 'total = begin % length ? total + part : part;', 'total = part;'),
    ('sums: strips of columns too short', 'csrc/sums.h', 'std::min(kStrip, length - c)', 'std::min(kStrip, length - c) - 1'),
    ('sums: weights of another part', 'csrc/sums.h', 'weight + begin % length', 'weight'),
    ('sums: the last rows lost', 'csrc/sums.h', 'std::min(rows, begin + step)', 'std::min(rows - 1, begin + step)'),
]  # fmt: skip
