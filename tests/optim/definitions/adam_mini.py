"""Adam-mini: arXiv 2406.16793, Algorithm 1, with a block for each row of a parameter."""

# ruff: noqa: E501 (exact texts)
import numpy as np


def rows(shape):
    """The default blocks: the first dimension larger than 1 but never the last; one below two dimensions."""
    return next((n for n in shape[:-1] if n > 1), 1) if np.prod(shape) else 1


def initial(p, **hyper):
    return {"exp_avg": np.zeros_like(p), "exp_avg_sq": np.zeros(rows(p.shape))}


def step(p, g, s, t, *, lr, betas, eps, weight_decay, caution=False):
    b1, b2 = betas
    m = b1 * s["exp_avg"] + (1 - b1) * g
    count = len(s["exp_avg_sq"])
    squares = g.reshape(count, p.size // count) ** 2
    v = b2 * s["exp_avg_sq"] + (1 - b2) * squares.sum(1) / max(p.size // count, 1)
    u = (m / (1 - b1**t)).reshape(count, -1 if p.size else 0) / (np.sqrt(v / (1 - b2**t)) + eps)[:, None]
    u = u.reshape(p.shape)
    if caution:
        agrees = u * g > 0
        u = u * agrees / max(agrees.mean(), 1e-3)
    return p - lr * (u + weight_decay * p), {"exp_avg": m, "exp_avg_sq": v}


BASE = dict(lr=0.07, betas=(0.7, 0.85), eps=1e-8, weight_decay=0.0)
VARIANTS = {"beta1=0": {**BASE, "betas": (0.0, 0.5), "weight_decay": 0.1}}
SHOWN_ELSEWHERE = {"partition": "test_adam_mini.py::test_the_partition_matters"}
SLOW = dict(betas=(0.999999,) * 2)

MINI, BLOCKS, PARTITION = (
    "optim/adan_optim/adam_mini.py",
    "optim/adan_optim/engine/blocks.py",
    "optim/adan_optim/partitions.py",
)
FAULTS = [
    ("m decays with b2", MINI, 'beta1, lr = group["betas"][0], float(group["lr"])', 'beta1, lr = group["betas"][1], float(group["lr"])'),
    ("m forgets", MINI, "m.mul_(beta1).add_(g, alpha=1 - beta1)", "m.mul_(0).add_(g, alpha=1 - beta1)"),
    ("weight decay without lr", MINI, 'local(p).mul_(1 - lr * group["weight_decay"])', 'local(p).mul_(1 - group["weight_decay"])'),
    ("weight decay after the update", MINI, 'local(p).mul_(1 - lr * group["weight_decay"]).sub_(local(m) * blocks.spread(x, p))', 'local(p).sub_(local(m) * blocks.spread(x, p)).mul_(1 - lr * group["weight_decay"])'),
    ("ascends", MINI, ".sub_(local(m) * blocks.spread(x, p))", ".add_(local(m) * blocks.spread(x, p))"),
    ("foreach: m decays with b2", MINI, 'torch._foreach_lerp_(m, g, 1 - group["betas"][0])', 'torch._foreach_lerp_(m, g, 1 - group["betas"][1])'),
    ("foreach: weight decay without lr", MINI, 'torch._foreach_mul_(p, 1 - float(group["lr"]) * group["weight_decay"])', 'torch._foreach_mul_(p, 1 - group["weight_decay"])'),
    ("foreach: weight decay left out", MINI, '        if group["weight_decay"]:\n', '        if not group["weight_decay"]:\n'),
    ("foreach: m before this step", MINI, "        x = block_steps(g, v, t, group)\n        torch._foreach_lerp_(m, g, 1 - group[\"betas\"][0])\n", "        x = block_steps(g, v, t, group)\n        m = [y.clone() for y in m]\n        torch._foreach_lerp_(state[\"exp_avg\"], g, 1 - group[\"betas\"][0])\n"),
    ("foreach: factors of the first parameter", MINI, "[blocks.spread(xi, pi) for xi, pi in zip(x, p, strict=True)]", "[blocks.spread(x[0].flatten()[:1].expand_as(xi), pi) for xi, pi in zip(x, p, strict=True)]"),
    ("sums instead of means", MINI, "[(1 - beta2) * share for share in shares]", "[(1 - beta2) for share in shares]"),
    ("v takes b2 of the new mean", MINI, "[(1 - beta2) * share for share in shares]", "[beta2 * share for share in shares]"),
    ("share of blocks instead of elements", MINI, "vi.numel() / max(gi.numel(), 1)", "1 / max(vi.numel(), 1)"),
    ("v does not decay", MINI, "    torch._foreach_mul_(v, beta2)\n", ""),
    ("v decays with b1", MINI, "    torch._foreach_mul_(v, beta2)\n", "    torch._foreach_mul_(v, beta1)\n"),
    ("v is not kept", MINI, "    torch._foreach_mul_(v, beta2)\n", "    v = list(torch._foreach_mul(v, beta2))\n"),
    ("no root", MINI, "x = torch._foreach_sqrt(v)", "x = torch._foreach_mul(v, 1.0)"),
    ("no bias correction of v", MINI, "    torch._foreach_div_(x, [math.sqrt(1 - beta2**ti) for ti in t])\n", ""),
    ("bias correction of v without the root", MINI, "math.sqrt(1 - beta2**ti)", "(1 - beta2**ti)"),
    ("bias correction of v with b1", MINI, "math.sqrt(1 - beta2**ti)", "math.sqrt(1 - beta1**ti)"),
    ("no bias correction of m", MINI, 'float(group["lr"]) / (1 - beta1**ti)', 'float(group["lr"])'),
    ("step of the first parameter for all", MINI, "(1 - beta1**ti) for ti in t", "(1 - beta1 ** t[0]) for ti in t"),
    ("no eps", MINI, '    torch._foreach_add_(x, group["eps"])\n', ""),
    ("eps before the bias correction", MINI, "    torch._foreach_div_(x, [math.sqrt(1 - beta2**ti) for ti in t])\n    torch._foreach_add_(x, group[\"eps\"])\n", "    torch._foreach_add_(x, group[\"eps\"])\n    torch._foreach_div_(x, [math.sqrt(1 - beta2**ti) for ti in t])\n"),
    ("another partition is not noticed", MINI, 'state["exp_avg_sq"].shape != expected', "False"),
    ("copies lose the partition", MINI, '"_blocks": self._blocks}', '"_blocks": {}}'),
    ("the partition of the model is not used", MINI, 'options["partition"] = partition(model, **(given or {}))', "pass"),
    ("norms instead of sums of squares", BLOCKS, "keepdim=True).square() if shared", "keepdim=True) if shared"),
    ("sums over blocks instead of cells", BLOCKS, "[2 * d + 1 for d in range(len(parts))]", "[2 * d for d in range(len(parts))]"),
    ("sums of one shard", BLOCKS, "return reduce_over_mesh(sums, g.device_mesh, g.placements) if is_dtensor(g) else sums", "return sums"),
    ("every shard at the beginning", BLOCKS, "slice(start, start + size) if n > 1", "slice(0, size) if n > 1"),
    ("cells of several blocks", BLOCKS, "if not size or run % size:", "if not size or size > run:"),
    ("columns written as rows", BLOCKS, "all(n == 1 for n in blocks[whole + 1 :])", "True"),
    ("leading dimensions of 1 are rows", BLOCKS, "for n in shape[:-1] if n > 1", "for n in shape[:1]"),
    ("rows of the last dimension", BLOCKS, "for n in shape[:-1] if n > 1", "for n in shape if n > 1"),
    ("key heads like query heads", PARTITION, 'count = asked["n_kv_heads"] if role is KEY else', 'count = asked["n_heads"] if role is KEY else'),
    ("heads of rows for a Conv1D", PARTITION, "blocks = (count,) if dim == 0 else (1, count)", "blocks = (count,)"),
    ("biases have one block", PARTITION, "return (max(p.numel(), 1),), ", "return (1,), "),
    ("experts not transposed", PARTITION, 'if getattr(module, "is_transposed", False):', "if False:"),
    ("fused weights of as many heads as queries", PARTITION, "heads + 2 * (kv_heads or heads)", "heads"),
    ("the last rule counts", PARTITION, "                break\n", ""),
    ("frozen parameters in the partition", PARTITION, "if not p.requires_grad:", "if False:"),
    ('fused: decay dropped', 'csrc/rules.h', 'p = k.before * p - x * s[0];', 'p = p - x * s[0];'),
    ('fused: the gradient is not scaled', 'csrc/rules.h', 's[0] = k.beta1 * s[0] + k.rest1 * (g * k.grad_scale);', 's[0] = k.beta1 * s[0] + k.rest1 * g;'),
    ('fused: means of the unscaled gradient', 'optim/adan_optim/adam_mini.py', 'sums * share * scale**2', 'sums * share'),
    ('fused: sums instead of means', 'optim/adan_optim/adam_mini.py', 'sums * share * scale**2', 'sums * scale**2'),
    ('fused: step not counted in factors', 'optim/adan_optim/adam_mini.py', '.double() + 1', '.double()'),
    ('fused: second moments are not kept', 'optim/adan_optim/adam_mini.py', '        torch._foreach_copy_(states, list(torch.split(v, counts)))\n', ''),
    ('fused: bias correction of the first parameter', 'optim/adan_optim/adam_mini.py', 'root.to(v.dtype)[owner]', 'root.to(v.dtype)[0]'),
    ('fused: blocks in any memory', 'optim/adan_optim/engine/blocks.py', 'return first and p.shape[0] % blocks[0] == 0', 'return True'),
    ('fused: sums of blocks, not means', 'csrc/blocks.h', 'x[i] * share, v[i]', 'x[i], v[i]'),
    ('fused: blocks of the unscaled gradient', 'csrc/rules.h', '(1 - h.beta2) * scale * scale', '1 - h.beta2'),
    ('fused: blocks without bias correction', 'csrc/rules.h', 'return k.rate / (root(v) * k.root_rate + k.eps);', 'return k.rate / (root(v) + k.eps);'),
    ('fused: blocks of another second moment', 'csrc/blocks.h', 'x[i] * share, v[i])', 'x[i] * share, v[begin])'),
    ('fused: a block that threads share, twice', 'csrc/cpu.cpp', 'std::min(sums::pieces(stop, of.length), end / of.length)', 'sums::pieces(stop, of.length)'),
    ('fused: a block that threads share, not at all', 'csrc/cpu.cpp', '% length && is_new)', '% length && !is_new)'),
    ('fused: long blocks with the others', 'csrc/cpu.cpp', 'if (of.length > blocks::kLong) before.push_back({i, 0, of.count});', ''),
    ('fused: blocks of bfloat16 gradients read as float', 'csrc/cpu.cpp', 'run_blocks<AdamMini, bfloat16, float>', 'run_blocks<AdamMini, float16, float>'),
    ('fused: last row of factors', 'csrc/loops.h', '++r, c = 0) {', 'c = 0) {'),
]  # fmt: skip
