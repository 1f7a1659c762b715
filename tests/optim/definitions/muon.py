"""Muon: Jordan et al. 2024, with the scalings of arXiv 2502.16982 and 2409.20325 and the coefficients of arXiv
2505.16932; AdamW (arXiv 1711.05101) or Adan (arXiv 2208.06677, Algorithm 1) for vectors.
"""

# ruff: noqa: E501 (exact texts)
import numpy as np

# Polar Express, Algorithm 1
EXPRESS = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]


def matrices(x, stacked):
    """The parameter as [count, rows, columns]; None of a vector."""
    if x.ndim < 2 or not x.size:
        return None
    x = x.reshape(-1, *x.shape[-2:]) if stacked else x.reshape(1, x.shape[0], -1)
    return x if min(x.shape[1:]) > 1 else None


def initial(p, *, rest, use_muon, stacked, **_):
    if use_muon and matrices(p, stacked) is not None:
        names = ["momentum_buffer"]
    else:
        names = ["exp_avg", "exp_avg_sq"] + ["exp_avg_diff", "neg_pre_grad"] * (rest == "adan")
    return {name: np.zeros_like(p) for name in names}


def orthogonal(u, coefficients, iterations):
    """By the singular values: each goes through the polynomials of all iterations."""
    left, s, right = np.linalg.svd(u, full_matrices=False)
    norm = np.sqrt((s**2).sum())
    s = s / norm if norm else s
    express = coefficients == "polar_express"
    s = s / 1.01 if express else s
    for i in range(iterations):
        a, b, c = EXPRESS[min(i, 7)] if express else (3.4445, -4.7750, 2.0315)
        if express and i < 7:
            a, b, c = a / 1.01, b / 1.01**3, c / 1.01**5
        s = a * s + b * s**3 + c * s**5
    return left * s @ right


SCALE = {
    "jordan": lambda rows, columns: max(1, rows / columns) ** 0.5,
    "moonshot": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,
    "bernstein": lambda rows, columns: (rows / columns) ** 0.5,
}


def careful(u, g, caution):
    agrees = u * g > 0
    return u * agrees / max(agrees.mean(), 1e-3) if caution and u.size else u


def step(
    p, g, s, t, *, lr, momentum, eps, weight_decay, nesterov, coefficients, iterations, scaling, rest,
    rest_betas, rest_lr_scale, use_muon, stacked, caution=False,
):  # fmt: skip
    if "momentum_buffer" in s:
        m = momentum * s["momentum_buffer"] + (1 - momentum) * g
        u = matrices((1 - momentum) * g + momentum * m if nesterov else m, stacked)
        x = np.stack([orthogonal(each, coefficients, iterations) for each in u])
        x = SCALE[scaling](*u.shape[1:]) * careful(x.reshape(p.shape), g, caution)
        return p - lr * (x + weight_decay * p), {"momentum_buffer": m}
    lr = lr * rest_lr_scale
    if rest == "adamw":
        b1, b2 = rest_betas or (0.9, 0.95)
        m, v = b1 * s["exp_avg"] + (1 - b1) * g, b2 * s["exp_avg_sq"] + (1 - b2) * g**2
        u = careful(m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps), g, caution)
        return p - lr * (u + weight_decay * p), {"exp_avg": m, "exp_avg_sq": v}
    b1, b2, b3 = rest_betas or (0.98, 0.92, 0.99)
    diff = g + s["neg_pre_grad"] if t > 1 else np.zeros_like(g)
    m, v = b1 * s["exp_avg"] + (1 - b1) * g, b2 * s["exp_avg_diff"] + (1 - b2) * diff
    n = b3 * s["exp_avg_sq"] + (1 - b3) * (g + b2 * diff) ** 2
    u = careful((m / (1 - b1**t) + b2 * v / (1 - b2**t)) / (np.sqrt(n / (1 - b3**t)) + eps), g, caution)
    p = (p - lr * u) / (1 + lr * weight_decay)
    return p, {"exp_avg": m, "exp_avg_diff": v, "exp_avg_sq": n, "neg_pre_grad": -g}


# float32: what bfloat16 gives depends on the processor. test_muon.py has it.
BASE = dict(
    lr=0.07,
    momentum=0.7,
    eps=1e-8,
    weight_decay=0.0,
    nesterov=True,
    coefficients="jordan",
    iterations=5,
    scaling="moonshot",
    precision="float32",
    rest="adamw",
    rest_betas=(0.7, 0.85),
    rest_lr_scale=1.5,
    use_muon=True,
    stacked=False,
)
ADAN = dict(rest="adan", rest_betas=(0.7, 0.6, 0.8))
VARIANTS = {
    "jordan": {**BASE, "scaling": "jordan", "nesterov": False, "rest_betas": None, "weight_decay": 0.1},
    "express": {**BASE, **ADAN, "coefficients": "polar_express", "scaling": "bernstein", "iterations": 4},
    "stacked": {**BASE, "stacked": True, "iterations": 2, "eps": 0.1},
    "no momentum": {
        **BASE,
        "momentum": 0.0,
        "iterations": 7,
        "coefficients": "polar_express",
        "rest_betas": (0.0, 0.5),
    },
    "the rest alone": {**BASE, **ADAN, "use_muon": False, "rest_betas": None},
}
CHANGES = {
    "momentum": 0.3,
    "nesterov": False,
    "coefficients": "polar_express",
    "iterations": 3,
    "scaling": "jordan",
    "rest": "adan",
    "rest_betas": (0.3, 0.4),
    "rest_lr_scale": 0.5,
    "use_muon": False,
}
GIVEN = {"rest": {"rest_betas": None}}
SHOWN_ELSEWHERE = {
    "precision": "test_muon.py::test_precision",
    "rules": "test_muon.py::test_rules",
    "stacked": "test_muon.py::test_a_stack_is_matrices_of_their_own",
}
UNIT = dict(scaling="jordan", iterations=30, coefficients="polar_express", rest_lr_scale=1.0)
SLOW = dict(momentum=0.999999, rest_betas=(0.999999,) * 2)
# Singular values near zero are multiplied by 500 in five iterations, and what they are rounded by, too.
ROUNDINGS = 3000

_FILE, _ITERATION, _HIDDEN = (
    "optim/adan_optim/muon.py",
    "optim/adan_optim/engine/orthogonal.py",
    "optim/adan_optim/hidden.py",
)
FAULTS = [
    ("the mean sums", _FILE, "m.mul_(momentum).add_(g, alpha=1 - momentum)", "m.mul_(momentum).add_(g)"),
    ("no look ahead", _FILE, 'u = momentum * m + (1 - momentum) * g if group["nesterov"] else m', "u = m"),
    ("always ahead", _FILE, 'u = momentum * m + (1 - momentum) * g if group["nesterov"] else m', "u = momentum * m + (1 - momentum) * g"),
    ("the gradient alone", _FILE, "u = momentum * m + (1 - momentum) * g if", "u = g if"),
    ("decay without lr", _FILE, 'p.mul_(1 - lr * group["weight_decay"])', 'p.mul_(1 - group["weight_decay"])'),
    ("the step has no scale", _FILE, "sub_(u, alpha=lr * _scale(p, group))", "sub_(u, alpha=lr)"),
    ("no caution", _FILE, "u = cautious(share_of(p, x), g, group)", "u = share_of(p, x)"),
    ("foreach: no caution", _FILE, "            steps = cautious_many(list(steps), [g[i] for i in indices], group)\n", ""),
    ("reference: no margin", _FILE, 'x = normalized(x.to(_precision(x, group)), MARGIN[group["coefficients"]])', "x = normalized(x.to(_precision(x, group)))"),
    ("foreach: no margin", _FILE, 'normalized(_as_matrices(u, group), MARGIN[group["coefficients"]])', "normalized(_as_matrices(u, group))"),
    ("foreach: no look ahead", _FILE, 'torch.lerp(gi, mi, momentum) if group["nesterov"] else mi', "mi"),
    ("foreach: the mean forgets", _FILE, "torch._foreach_lerp_(m, g, 1 - momentum)", "torch._foreach_lerp_(m, g, 1)"),
    ("foreach: decay dropped", _FILE, '        torch._foreach_mul_(p, 1 - lr * group["weight_decay"])\n', ""),
    ("foreach: scale of another", _FILE, "p[i].sub_(step, alpha=lr * _scale(owner, group))", "p[i].sub_(step, alpha=lr * _scale(owners[0], group))"),
    ("shapes are not told apart", _FILE, "for (shape, place), indices in alike.items():", "for (shape, place), indices in list(alike.items())[:1]:"),
    ("one matrix of a stack", _FILE, "x.flatten(0, -3) if", "x.flatten(2) if"),
    ("the last coefficients at once", _FILE, "known[min(i, len(known) - 1)]", "known[-1]"),
    ("bernstein: the other way round", _FILE, "math.sqrt(rows / columns),", "math.sqrt(columns / rows),"),
    ("jordan: never below one", _FILE, "math.sqrt(max(1.0, rows / columns))", "math.sqrt(rows / columns)"),
    ("moonshot: without 0.2", _FILE, "0.2 * math.sqrt(max(rows, columns))", "math.sqrt(max(rows, columns))"),
    ("the rest has Muon's lr", _FILE, '"lr": group["lr"] * group["rest_lr_scale"]', '"lr": group["lr"]'),
    ("the rest has its own betas", _FILE, '"betas": group["rest_betas"] or own["betas"]', '"betas": own["betas"]'),
    ("all matrices are hidden", _FILE, 'return group["use_muon"] and is_matrix(', "return is_matrix("),
    ("another rule is not noticed", _FILE, "if missing and state.keys() & self.card.states.keys():", "if False:"),
    ("precision is not asked", _FILE, 'return named.get(group["precision"]) or fast_dtype(x)', "return fast_dtype(x)"),
    ("groups of the model are not told apart", _FILE, "if kinds[p] == (is_hidden, is_stack)]", "if is_hidden and not is_stack]"),
    ("b and c swapped", _ITERATION, "(b * gram + c * gram @ gram) @ x", "(c * gram + b * gram @ gram) @ x"),
    ("no linear term", _ITERATION, "x = a * x + (b", "x = (b"),
    ("foreach: no linear term", _ITERATION, "            p.diagonal(dim1=-2, dim2=-1).add_(a)\n", ""),
    ("foreach: R is not carried on", _ITERATION, "gram = p @ gram @ p", "gram = p @ gram"),
    ("foreach: the last product alone", _ITERATION, "q = p if q is None else p @ q", "q = p"),
    ("foreach: tall matrices are not turned back", _ITERATION, "coefficients).mT.contiguous()", "coefficients).reshape(x.shape)"),
    ("zero over zero", _ITERATION, ".clamp(min=torch.finfo(x.dtype).tiny)", ""),
    ("long runs in bfloat16", _ITERATION, "torch.bfloat16: 2,", "torch.bfloat16: 5,"),
    ("bfloat16 everywhere", _ITERATION, "has = x.device.type == \"cpu\" and ask()", "has = True"),
    ("embeddings are hidden", _HIDDEN, 'return False, False, f"{kind}: embedding"', 'return True, False, f"{kind}: embedding"'),
    ("the output layer is hidden", _HIDDEN, "output = None if inside else model.get_submodule(last)", "output = None"),
    ("a block has an output layer", _HIDDEN, "output = None if inside else", "output ="),
    ("rules do not count", _HIDDEN, 'is_hidden, reason = rule, f"rule: {rule}"', 'reason = f"rule: {rule}"'),
    ("the last rule counts", _HIDDEN, "                break\n", ""),
    ("rows are matrices", _HIDDEN, "return min(sides) > 1", "return min(sides) > 0"),
    ("parts instead of whole tensors", "optim/adan_optim/engine/dtensor.py", "return list(exchanged(work(mine), by_tensor, by_part).unbind())", "return list(work(stack).unbind())"),
]  # fmt: skip
