"""`make test-mutants`: plants faults in optim/ and csrc/, one at a time; tests/optim must notice every one.

Each fault is (what is wrong, file, exact text, text put in its place); those of an optimizer's own rule stand in
its definition (tests/optim/definitions), the others here. A copy of the sources gets the fault,
the kernels are recompiled if it is in csrc/, and pytest runs on the copy. A text that is not found exactly
once is an error, so that the list keeps up with the sources.

    python tests/mutants.py [-k WORDS] [-j JOBS] [--sample N [--shard K]]

With --sample about N faults, spread over all files: another part of the list for each K.

Exits with 1 if a fault was not noticed, 2 if the list or the sources are at fault.
"""

# ruff: noqa: E501 (exact texts)
import argparse
import importlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from multiprocessing import connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("optim", "csrc", "adan.py", "adam_mini.py", "setup.py", "pyproject.toml", "tests/optim")
LIBRARY = "optim/_cpu.abi3.so"
DAILY = "not slow and not exhaustive"  # tests of `make test`
# Imported once; the tests run in forks.
PRELOAD = (
    "torch",
    "numpy",
    "hypothesis",
    "pytest",
    "timm.optim",
    "torch.distributed.checkpoint",
    "torch._dynamo",
)
# Not here: tests of the CUDA backend, and against other implementations.
TESTS = (
    "oracle",
    "semantics",
    "tensors",
    "checkpoints",
    "amp",
    "norm",
    "arguments",
    "registry",
    "integration",
    "storage",
    "overhead",
    "contract",
    "sums",
    "adam",
    "monitor",
    "blocks",
)

ADAN, BASE = "optim/adan.py", "optim/base.py"
PLAN, FUSED, UNFUSED, TAKEN, SCALING, AVAILABLE, ADOPT = (
    "optim/engine/plan.py",
    "optim/engine/fused.py",
    "optim/engine/unfused.py",
    "optim/engine/taken.py",
    "optim/engine/scaling.py",
    "optim/engine/available.py",
    "optim/engine/checkpoint.py",
)
RULES, CPU, NATIVE, NORM, GROUPS = (
    "csrc/rules.h",
    "csrc/cpu.cpp",
    "optim/engine/native.py",
    "optim/engine/norm.py",
    "optim/groups.py",
)
TENSORS, LAYOUT, CHECKS = "csrc/tensors.h", "optim/engine/layout.py", "optim/engine/checks.py"
KEEP, STORAGE = "optim/engine/storage.py", "csrc/storage.h"
CONTRACT, RESIZE = "optim/engine/contract.py", "optim/resize.py"
MONITOR, READINGS, SUMMARY = (
    "optim/monitor/monitor.py",
    "optim/monitor/readings.py",
    "optim/monitor/statistics.py",
)

# By the test file that is run first, where the fault should be found at once.
FAULTS = {
    "oracle": [
        ("sign of the difference", ADAN, "diff = g + neg_pre_grad if", "diff = g - neg_pre_grad if"),
        ("first difference is the gradient", ADAN, "torch.zeros_like(g)\n", "g.clone()\n"),
        ("coefficient of the difference in n is 1 - b2", ADAN, "(g + b2 * diff).square()", "(g + (1 - b2) * diff).square()"),
        ("no Nesterov term in n", ADAN, "(g + b2 * diff).square()", "g.square()"),
        ("no b2 on v in the update", ADAN, "+ b2 * v / (1 - b2**t)", "+ v / (1 - b2**t)"),
        ("no bias correction of m", ADAN, "u = m / (1 - b1**t)", "u = m"),
        ("no bias correction of v", ADAN, "+ b2 * v / (1 - b2**t)", "+ b2 * v"),
        ("no bias correction of n", ADAN, "u /= n.sqrt() / math.sqrt(1 - b3**t) +", "u /= n.sqrt() +"),
        ("bias correction of n with b2", ADAN, "u /= n.sqrt() / math.sqrt(1 - b3**t)", "u /= n.sqrt() / math.sqrt(1 - b2**t)"),
        ("eps inside the root", ADAN, 'u /= n.sqrt() / math.sqrt(1 - b3**t) + group["eps"]', 'u /= (n / (1 - b3**t) + group["eps"]).sqrt()'),
        ("eps before the bias correction", ADAN, 'u /= n.sqrt() / math.sqrt(1 - b3**t) + group["eps"]', 'u /= (n.sqrt() + group["eps"]) / math.sqrt(1 - b3**t)'),
        ("m decays with b2", ADAN, "m.mul_(b1).add_(g, alpha=1 - b1)", "m.mul_(b2).add_(g, alpha=1 - b2)"),
        ("v and n share a beta", ADAN, "v.mul_(b2).add_(diff, alpha=1 - b2)", "v.mul_(b3).add_(diff, alpha=1 - b3)"),
        ("weight decay dropped", ADAN, "p.sub_(u, alpha=lr).div_(1 + decay)", "p.sub_(u, alpha=lr)"),
        ("weight decay flipped", ADAN, "p.sub_(u, alpha=lr).div_(1 + decay)", "p.sub_(u, alpha=lr).div_(1 - decay)"),
        ("decoupled for proximal", ADAN, "p.sub_(u, alpha=lr).div_(1 + decay)", "p.mul_(1 - decay).sub_(u, alpha=lr)"),
        ("proximal and decoupled exchanged", ADAN, 'if group["no_prox"]:\n            p.mul_', 'if not group["no_prox"]:\n            p.mul_'),
        ("stale previous gradient", ADAN, "        neg_pre_grad.copy_(g).neg_()\n", "        if t == 1:\n            neg_pre_grad.copy_(g).neg_()\n"),
        ("lr 5 % off", ADAN, "p.sub_(u, alpha=lr).div_", "p.sub_(u, alpha=lr * 1.05).div_"),
        ("foreach: wrong beta for m", ADAN, "torch._foreach_lerp_(m, g, 1 - b1)", "torch._foreach_lerp_(m, g, 1 - b3)"),
        ("foreach: difference not zeroed at first", ADAN, "if ti == 1]", "if ti == 0]"),
        ("foreach: coefficient in n", ADAN, "torch._foreach_mul_(diff, b2)", "torch._foreach_mul_(diff, 1 - b2)"),
        ("foreach: step of the first parameter for all", ADAN, "torch._foreach_addcdiv_(p, m, denominator, [-lr / (1 - b1**ti) for ti in t])", "torch._foreach_addcdiv_(p, m, denominator, [-lr / (1 - b1 ** t[0]) for ti in t])"),
        ("foreach: no b2 on v", ADAN, "[-lr * b2 / (1 - b2**ti) for ti in t]", "[-lr / (1 - b2**ti) for ti in t]"),
        ("foreach: stale previous gradient", ADAN, "torch._foreach_copy_(neg_pre_grad, g)\n", "torch._foreach_zero_(neg_pre_grad)\n"),
        ("foreach: previous gradient not negated", ADAN, "        torch._foreach_neg_(neg_pre_grad)\n", ""),
        ("foreach: root correction missing", ADAN, "        torch._foreach_div_(denominator, [math.sqrt(1 - b3**ti) for ti in t])\n", ""),
        ("foreach: proximal decay dropped", ADAN, "            torch._foreach_div_(p, 1 + decay)", "            pass"),
        ("fused: weight decay and eps exchanged", ADAN, '*group["betas"], group["eps"], group["weight_decay"], group["no_prox"]', '*group["betas"], group["weight_decay"], group["eps"], group["no_prox"]'),
        ("AdamW fused rule: no bias correction of m", RULES, "m_rate(h.lr / (1 - pow(h.beta1, t))), root_rate(1 / sqrt(1 - pow(h.beta2, t)))", "m_rate(h.lr), root_rate(1 / sqrt(1 - pow(h.beta2, t)))"),
        ("AdamW fused rule: decay dropped", RULES, "p = k.before * p - k.m_rate", "p = p - k.m_rate"),
        ("rule: sign of the difference", RULES, "T(0) : g + s[3]", "T(0) : g - s[3]"),
        ("rule: first difference not zero", RULES, "k.first > 0 ? T(0) : g + s[3]", "g + s[3]"),
        ("rule: coefficient in n", RULES, "nesterov = g + k.beta2 * diff", "nesterov = g + k.rest2 * diff"),
        ("rule: no Nesterov term", RULES, "nesterov = g + k.beta2 * diff", "nesterov = g"),
        ("rule: eps inside the root", RULES, "(k.m_rate * s[0] + k.v_rate * s[1]) / (root(s[2]) * k.root_rate + k.eps)", "(k.m_rate * s[0] + k.v_rate * s[1]) / root(s[2] * k.root_rate * k.root_rate + k.eps)"),
        ("rule: no root correction", RULES, "root_rate(1 / sqrt(1 - pow(h.beta3, t)))", "root_rate(1)"),
        ("rule: no b2 on v", RULES, "v_rate(h.lr * h.beta2 / (1", "v_rate(h.lr / (1"),
        ("rule: step off by one", RULES, "v_rate(h.lr * h.beta2 / (1 - pow(h.beta2, t)))", "v_rate(h.lr * h.beta2 / (1 - pow(h.beta2, t + 1)))"),
        ("rule: no decoupled decay", RULES, "before(h.no_prox != 0 ? 1 - h.lr * h.weight_decay : 1)", "before(1)"),
        ("rule: proximal decay flipped", RULES, "1 / (1 + h.lr * h.weight_decay)", "1 / (1 - h.lr * h.weight_decay)"),
        ("rule: previous gradient unclipped", RULES, "s[3] = -g;", "s[3] = -g / k.grad_scale;"),
        ("rule: hyper-parameters in float", RULES, "rest1(1 - h.beta1), rest2(1 - h.beta2), rest3(1 - h.beta3)", "rest1(1 - float(h.beta1)), rest2(1 - float(h.beta2)), rest3(1 - float(h.beta3))"),
        ("rule: gradient scale ignored", RULES, "g *= k.grad_scale;\n    const T diff", "const T diff"),
        ("bfloat16 truncated", STORAGE, "uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)", "uint16_t(u >> 16)"),
        ("bfloat16 ties away from zero", STORAGE, "u + 0x7fff + ((u >> 16) & 1)", "u + 0x8000"),
        ("bfloat16 NaN becomes infinite", STORAGE, "x != x ? uint16_t(0x7fc0) : uint16_t((u + 0x7fff", "x != x ? uint16_t(0x7f80) : uint16_t((u + 0x7fff"),
        ("float16 truncated", STORAGE, "magnitude - 0x38000000 + 0x0fff + ((magnitude >> 13) & 1)", "magnitude - 0x38000000"),
        ("float16 ties up", STORAGE, "0x38000000 + 0x0fff + ((magnitude >> 13) & 1)", "0x38000000 + 0x1000"),
        ("float16 subnormals flushed", STORAGE, "magnitude < 0x38800000 ? subnormal :", "magnitude < 0x38800000 ? 0 :"),
        ("float16 overflow too late", STORAGE, "magnitude >= 0x477ff000", "magnitude >= 0x48800000"),
        ("float16 infinities read as numbers", STORAGE, "rest >= 0x0f800000 ?", "rest > 0x7f800000 ?"),
        ("step not incremented", CPU, "step += Rule::counts;\n", ";\n"),
        ("threads skip a boundary", CPU, "const int64_t stop = cut(rank + 1, ranks);", "const int64_t stop = cut(rank + 1, ranks) - (rank + 1 < ranks);"),
        ("threads overlap", CPU, "const int64_t stop = cut(rank + 1, ranks);", "const int64_t stop = std::min(total, cut(rank + 1, ranks) + 1);"),
        ("tail of a span dropped", CPU, "i < n; ++i) {\n    R parameter", "i < n - n % 4; ++i) {\n    R parameter"),
        ("a zero-size tensor ends the work", CPU, "if (at < end) update", "if (first == ends[i]) break;\n      if (at < end) update"),
        ("a chunk is cut at 65536", CPU, "at - first, end - first);", "at - first, std::min<int64_t>(end - first, 65536));"),
        ("float64 computed as float32", STORAGE, "RULE_FN double load(double x) { return x; }", "RULE_FN float load(double x) { return float(x); }"),
        ("unfused: step not incremented", UNFUSED, '        state["step"] += 1\n', '        state["step"].clamp_(min=1)\n'),
        ("maximize ignored", BASE, 'factor = -1.0 if batch.group["maximize"] else 1.0', "factor = 1.0"),
        ("no eps in clipping", SCALING, '(norm + optimizer.defaults.get("eps", 0.0))', "norm"),
        ("clip coefficient above 1", SCALING, ".clamp(max=1)", ""),
        ("clipping per group of the first", SCALING, "grads = [p.grad for group in optimizer.param_groups for p", "grads = [p.grad for group in optimizer.param_groups[:1] for p"),
        ("low precision not written back", KEEP, "    elif kept is not x:\n        kept.copy_(x)", "    elif False:\n        pass"),
        ("arithmetic in bfloat16", KEEP, "work = torch.promote_types(params[0].dtype, torch.float32)", "work = params[0].dtype"),
    ],
    "semantics": [
        ("scalars of the first row for all", CPU, "if (i && uint32_t(step) == scratch.back().step)", "if (i)"),
        ("restart keeps the moments", ADAN, 'names = {"step", *moments,', 'names = {"step",'),
        ("restart keeps the step count", ADAN, 'names = {"step", *moments,', "names = {*moments,"),
        ("restart forgets the compensation", ADAN, 'moments = (*self.card.states, "pre_grad")', 'moments = (*self.card.states, "pre_grad", "compensation")'),
        ("late gradients not noticed", PLAN, "            and all(p.grad is None for p in self.idle)\n", ""),
        ("one step count for a batch", UNFUSED, 't = [state["step"].item() for state in states]', 't = [states[0]["step"].item() for state in states]'),
        ("gradient changed in place", UNFUSED, "g = list(torch._foreach_mul(g, by))", "torch._foreach_mul_(g, by)"),
        ("eps of the last group in clipping", SCALING, 'norm + optimizer.defaults.get("eps", 0.0)', 'norm + optimizer.param_groups[-1]["eps"]'),
        ("skip only for NaN", SCALING, "not math.isfinite(norm.item())", "math.isnan(norm.item())"),
        ("nonfinite skip counts a step", SCALING, "        return False, None\n    if optimizer.max_grad_norm > 0:", '        for state in optimizer.state.values():\n            state["step"] += 1\n        return False, None\n    if optimizer.max_grad_norm > 0:'),
        ("raise does not raise", SCALING, 'if optimizer.nonfinite == "raise":', 'if optimizer.nonfinite == "raises":'),
    ],
    "tensors": [
        ("size of a table row", NATIVE, "self._width = len(columns)", "self._width = len(columns) - 1"),
        ("stale gradients", TENSORS, "row[1] = g.data;", ""),
        ("moved parameters not noticed", TENSORS, "p.data != row[0] ||", ""),
        ("another layout not noticed", TENSORS, "p.fingerprint != r.fingerprints[i] ||", ""),
        ("another layout of the gradient not noticed", TENSORS, " || g.fingerprint != p.fingerprint ||", " ||"),
        ("replaced state dicts not noticed", TENSORS, "if (*before++ != value) return false;", "++before;"),
        ("replaced states not noticed", TENSORS, "value != held->object || ", ""),
        ("moved states not noticed", TENSORS, "(held->column >= 0 && x.data != row[held->column])", "false"),
        ("gaps in a parameter not noticed", AVAILABLE, "if not is_dense(p):", "if False:"),
        ("gradients laid out otherwise not noticed", LAYOUT, "return a.stride() == b.stride() or all(", "return True or all("),
        ("edited groups not noticed", PLAN, "len(self.groups) == len(optimizer.param_groups)\n", "True\n"),
        ("replaced parameters not noticed", TENSORS, "if (PyList_GetItem(list, i) != before[i]) return false;", ""),
        ("cleared states not noticed", PLAN, "            and self.states.unchanged(optimizer.state)\n", ""),
        ("states do not follow a cast", KEEP, "            and old.dtype == wanted\n", ""),
        ("states do not follow a change of layout", KEEP, "            and same_layout(local(old), local(p))\n", ""),
        ("states lose their values in a cast", KEEP, "            store(state, name, slot, value, signed, None)\n", "            pass\n"),
    ],
    "checkpoints": [
        ("old checkpoint: sign of pre_grad", KEEP, 'state[name] = -torch.as_tensor(', 'state[name] = torch.as_tensor('),
        ("old checkpoint: pre_grad dropped", KEEP, 'device=local(p).device) * pre_grad', 'device=local(p).device) * torch.zeros_like(pre_grad)'),
        ("a loaded checkpoint switches the path", ADOPT, "            del saved[name]\n", "            setattr(optimizer, name, saved.pop(name))\n"),
        ("options of a checkpoint stay in the group", ADOPT, "            del saved[name]\n", "            pass\n"),
        ("missing keys of a checkpoint not filled in", ADOPT, "            saved.setdefault(name, value)\n", "            pass\n"),
        ("the step of a group is lost", ADOPT, 'state.setdefault("step", group_step)', 'state.setdefault("step", 1)'),
        ("shapes of a checkpoint unchecked", ADOPT, "if state[key].shape != shape:", "if state[key].ndim > 99:"),
        ("pickling loses the options", BASE, "return {**super().__getstate__(), **{name: getattr(self, name) for name in OPTIMIZER_WIDE}}", 'return {**super().__getstate__(), "max_grad_norm": 0.0, "nonfinite": "propagate", "foreach": None, "fused": None, "take_gradients": False, "capturable": False}'),
    ],
    "storage": [
        ("noise of every step alike", STORAGE, "return hash(step * 0x9e3779b9u + i);", "return hash(i);"),
        ("noise of every block alike", STORAGE, "+ uint32_t(block) +", "+"),
        ("two slots share their noise", STORAGE, "return slot % 2 ? word >> (32 - bits)", "return slot > 9 ? word >> (32 - bits)"),
        ("always rounded down", STORAGE, "uint16_t((u + noise) >> 16);\n#endif", "uint16_t(u >> 16);\n#endif"),
        ("NaN carries into the sign", CPU, "if constexpr (rounded) gradient = quiet(gradient);", ""),
        ("a code loses the sign", STORAGE, "(rounded | ((u >> 5) & (0x80u << 19)))", "rounded"),
        ("a denominator becomes zero", STORAGE, "return code > least ? code : least;", "return code;"),
        ("codes beyond the last", STORAGE, "kTop * (1 - 0x1p-22f) / maximum", "kTop * (1 + 0x1p-20f) / maximum"),
        ("codes without their offset", STORAGE, "| kBase) - 2.0f) * factor", "| kBase)) * factor"),
        ("blocks without anything divide by zero", STORAGE, "maximum > 0 ? 3e38f : 0.0f", "3e38f * 3"),
        ("the maximum of the block before", CPU, "static_cast<float*>(maxima)[at / kBlock]", "static_cast<float*>(maxima)[(at - (at > 0)) / kBlock]"),
        ("a tensor is cut inside a block", CPU, "(at - first) / kBlock * kBlock", "(at - first) / 64 * 64"),
        ("all states signed", RULES, "nonnegative = 1 << 2;", "nonnegative = 0;"),
        ("compensation forgotten", CPU, "p[i] += load(rest[i]);", ";"),
        ("compensation of the wrong sign", CPU, "store(rest[i], p[i] - load(to[i]));", "store(rest[i], load(to[i]) - p[i]);"),
        ("parameters rounded down", CPU, "noise_of_parameter(places[i] ^ key)", "0"),
        ("parameters rounded by the noise of a state", CPU, "noise_of_parameter(places[i] ^ key)", "(places[i] ^ key) & 0xffff"),
        ("a stale taken gradient", CPU, "table[i * width + kPrevious] = table[i * width + kGrad];", ";"),
        ("the coefficient of a taken gradient forgotten", CPU, "scale = R(grad_scale);", "scale = 1;"),
        ("sign of a taken gradient", CPU, "-previous_scale * previous[i]", "previous_scale * previous[i]"),
        ("reference: taken gradient unclipped", UNFUSED, '-s["pre_grad_scale"].to(work) * s["pre_grad"]', '-s["pre_grad"]'),
        ("reference: coefficient not kept", UNFUSED, 'state["pre_grad_scale"].fill_(by)', "pass"),
        ("taken gradients are handed back", TAKEN, "        p.grad = None\n", ""),
        ("the table holds the gradient before", TAKEN, "batch.table.hold_gradients()", "pass"),
        ("reference: compensation forgotten", KEEP, 'torch._foreach_add_(values, [state["compensation"].to(work) for state in states])', "pass"),
        ("reference: nearest states rounded stochastically", UNFUSED, "words if small else None", "words"),
        ("reference: noise of every block alike", KEEP, "block = element // BLOCK", "block = element * 0"),
        ("reference: always rounded down", KEEP, "noise_bits(words, slot, 16)", "noise_bits(words, slot, 16) * 0"),
        ("reference: decode without sign", KEEP, "torch.where(code > 0x7F, -x, x) if signed", "x if signed"),
        ("small tensors in 8 bits", KEEP, 'p.numel() < group["min_int8_size"]', "False"),
        ("a checkpoint decides how states are kept", ADOPT, "        saved |= {name: group[name] for name in STORAGE_OPTIONS}\n", ""),
        ("checkpoints in float32", KEEP, "slots[name], x.dtype).copy_(x)", "slots[name], torch.float32).copy_(x)"),
        ("a bucket's view is taken", TAKEN, "not is_dtensor(g) and g._is_view()", "False"),
    ],
    "contract": [
        ("shapes of states unchecked", CONTRACT, "if x.shape != torch.Size(shape):", "if False:"),
        ("number of scales unchecked", CONTRACT, "tuple(scale.shape) != blocks", "False"),
        ("codes without scales", CONTRACT, "(scale is None) == (x.dtype == torch.uint8)", "False"),
        ("wrappers are plain", LAYOUT, "return type(x).__torch_dispatch__ is Tensor.__torch_dispatch__", "return True"),
        ("lazy negation of a gradient", CONTRACT, "if x.is_neg():", "if False:"),
        ("lazy negation not noticed later", TENSORS, "torch.is_neg(x) || ", ""),
        ("wrapped gradients not noticed", TENSORS, "!torch.has_dispatch(g) && ", ""),
        ("another type at the same address", TENSORS, "uint64_t(dtype) << 8 | uint64_t(dim)", "uint64_t(dim)"),
        ("another shape of a state", TENSORS, "x.fingerprint != held->fingerprint ||", ""),
        ("versions of parameters", TENSORS, "    torch.bump_version(param);\n", ""),
        ("versions of states", TENSORS, "torch.bump_version(handle(torch, value));", ";"),
        ("versions of a new table", BASE, "if is_new:\n                    batch.table.bump_versions()", "pass"),
        ("versions without torch's function", NATIVE, "torch.autograd.graph.increment_version([*self._kept[0], *self._objects])", "pass"),
        ("shared memory not noticed", CONTRACT, "if size and start and start < end:", "if False:"),
        ("foreign entries are watched", NATIVE, "else _Held(None, -1, 0, None)", "else _Held(id(x), -1, 0, None)"),
        ("scales of the default type", KEEP, "torch.zeros(-(-p.numel() // BLOCK), dtype=torch.float32,", "torch.zeros(-(-p.numel() // BLOCK),"),
        ("cast scales stay cast", KEEP, "state[scale].to(p.device, torch.float32)", "state[scale].to(p.device)"),
        ("a step count of another type", KEEP, "step.to(step_device, torch.float32)", "step.to(step_device)"),
        ("factors of codes in the default type", KEEP, "(maxima > 0).to(maxima.dtype) * 3e38", "torch.where(maxima > 0, 3e38, 0.0)"),
        ("changed hyper-parameters unchecked", BASE, "        self._checked = checks.check_changes(self, self._checked)\n", ""),
        ("rounding beyond a strided parameter", KEEP, "rounded = torch.empty_like(value, dtype=p.dtype)", "rounded = p"),
        ("new rows keep the states of the first", RESIZE, "    taken[rows < 0] = 0\n", ""),
        ("columns resized like rows", RESIZE, "if shape == shape_of_longer else", "if False else"),
    ],
    "amp": [
        ("unscaling forgotten when clipping", SCALING, "scale = clip if scale is None else clip * scale.to(clip.device)", "scale = clip"),
        ("norm of the scaled gradients", SCALING, "norm = norm if scale is None else norm * scale.to(norm.device)", "pass"),
        ("found_inf ignored", SCALING, "if found_inf is not None and not on_device and found_inf.item():", "if False:"),
        ("grad_scale ignored", SCALING, "loss_scale.double().reciprocal()", "torch.ones(())"),
    ],
    "norm": [
        ("norm without the root", NORM, "return torch.stack(squares).sum().sqrt()", "return torch.stack(squares).sum()"),
        ("norm in the gradients' type", NORM, "torch._foreach_norm(parts, 2, dtype=dtype)", "torch._foreach_norm(parts, 2)"),
    ],
    "arguments": [
        ("beta of 1 accepted", CHECKS, "if max(values) >= 1:", "if max(values) > 1:"),
        ("infinite numbers accepted", CHECKS, "if not (math.isfinite(plain) and plain >= 0):", "if not plain >= 0:"),
        ("misspelt keys accepted", CHECKS, "n=1, cutoff=0.8):", "n=1, cutoff=1.0):"),
        ("a refused group stays", BASE, "            self.param_groups.pop()\n", ""),
    ],
    "registry": [
        ("biases decay", GROUPS, 'p.ndim <= 1 or name.endswith(".bias") or name in exempt', "p.ndim < 1 or name in exempt"),
        ("names of the model ignored", GROUPS, " or name in exempt", ""),
        ("layer ids off by one", GROUPS, "done if inside or not done else done + 1", "done"),
        ("lr not scaled by layer", GROUPS, "lr=lr * scale", "lr=lr"),
    ],
    "integration": [
        ("traced by torch.compile", BASE, "    @_disable_dynamo\n", ""),
        ("norm of the local shard", NORM, "reduce_over_mesh(square, *spec) if spec else square", "square"),
    ],
    "monitor": [
        ("norm of scaled gradients", READINGS, 'math.sqrt(total("grad.square")) / scale', 'math.sqrt(total("grad.square"))'),
        ("ratio to parameters that do not move", READINGS, 'total("weight.square", moved)', 'total("weight.square")'),
        ("codes of second moments read as signed", READINGS, "name not in card.nonnegative", "True"),
        ("mean over parameters without the state", READINGS, "numel() for i in held)", "numel() for i in rows)"),
        ("extremes of shards added up", READINGS, '"max" if reduce is largest else "sum"', '"sum"'),
        ("numbers of the local shard", READINGS, "            if spec is not None:\n", "            if False:\n"),
        ("inf not counted", READINGS, "(x - x).count_nonzero()", "(x != x).count_nonzero()"),
        ("gradients of the step before a closure", MONITOR, "        if closure is None:\n", "        if True:\n"),
        ("first step not sampled", MONITOR, " and self.step != 1", ""),
        ("readings of a step that raised", MONITOR, "        self._seen = None\n        if self.step % ", "        if self.step % "),
        ("recorded numbers stay", MONITOR, "self._seen, self._metrics = None, {}", "self._seen = None"),
        ("graph of the loss kept", MONITOR, "value = value.detach()", "pass"),
        ("torn line kept", MONITOR, 'if not line.endswith(b"\\n"):', "if False:"),
        ("norm after clipping not recognised", MONITOR, "0.999 if outside else 1.0", "1.0"),
        ("ring keeps parameters", MONITOR, ' if key != "parameters"}', "}"),
        ("variance from differences before", SUMMARY, "before * (x - self.mean)", "before * before"),
        ("quantile at the edge of its bin", SUMMARY, " * 0.99 if place", " if place"),
    ],
}  # fmt: skip


def compile_kernels(tree: Path) -> None:
    """With the flags of setup.py, which is not imported because it would run.

    Optimised less, which takes a fifth of the time and gives the same numbers.
    """
    flags = re.search(r"-std=[^\"]*", (tree / "setup.py").read_text())[0].replace("-O3", "-O1").split()
    command = [os.environ.get("CXX", "g++"), *flags, "-shared", "-fPIC"]
    done = subprocess.run([*command, "csrc/cpu.cpp", "-o", LIBRARY], cwd=tree, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"does not compile: {done.stderr.strip()[:500]}")


def copy_sources(source: Path, tree: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.so" if source == ROOT else "")
    for name in SOURCES:
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, target, ignore=ignore)
        else:
            shutil.copy(source / name, target)


def own_faults() -> dict[str, list[tuple[str, str, str, str]]]:
    """The faults that the definitions list, by optimizer."""
    sys.path.insert(0, str(ROOT / "tests" / "optim"))
    from oracle import DEFINITIONS

    return {
        name: definition.FAULTS for name, definition in DEFINITIONS.items() if hasattr(definition, "FAULTS")
    }


def misplaced(faults: Iterable[tuple[str, str, str, str]], tree: Path) -> list[str]:
    """A line for each fault whose text is not found exactly once in its file."""
    counts = ((name, file, old, (tree / file).read_text().count(old)) for name, file, old, _ in faults)
    return [
        f"{file}, {name!r}: the text is there {count} times: {old!r}"
        for name, file, old, count in counts
        if count != 1
    ]


def stages(first: str) -> list[list[str]]:
    """What pytest is given, one run after the other; first is a test file, or an optimizer's name."""
    files = [f"tests/optim/test_{name}.py" for name in TESTS if name != first]
    if first in TESTS:
        return [[f"tests/optim/test_{first}.py"], files]
    own = [[file]] if (file := f"tests/optim/test_{first}.py") and Path(file).exists() else []
    return [["tests/optim/test_oracle.py", "-k", first], *own, [*files, "-k", first]]


def run(tree: Path, file: str, old: str, new: str, first: str) -> None:
    """In a child process: plants a fault and runs the tests, in stages."""
    output = os.open(tree / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(tree)
    if file:
        (tree / file).write_text((tree / file).read_text().replace(old, new))
    if file.startswith("csrc/"):
        compile_kernels(tree)
    os.environ.update(PYTHONPATH=str(tree))
    sys.path.insert(0, str(tree))
    import pytest

    import optim

    if Path(optim.__file__) != tree / "optim" / "__init__.py":
        sys.exit(f"imported {optim.__file__}")
    options = ["-x", "-q", "-p", "no:cacheprovider", "--tb=line", "-rf", "--timeout=120", "-m", DAILY]
    options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]  # it is, on purpose
    for stage in stages(first):
        if status := pytest.main([*options, *stage]):
            sys.exit(int(status))


def judge(exit_code: int, output: str) -> tuple[str, str]:
    """What became of a fault ("killed", "SURVIVED" or "BROKEN"), and the test or the reason."""
    if failed := re.search(r"^FAILED tests/optim/(\S.*?)(?: - .*)?$", output, re.MULTILINE):
        return "killed", failed[1]
    if exit_code < 0:
        return "killed", f"crashed with signal {-exit_code}"
    if "Timeout" in output:
        return "killed", "a test did not end"
    return ("BROKEN", f"status {exit_code}: {output.strip()[-300:]!r}") if exit_code else ("SURVIVED", "")


class Run:
    """One copy of the sources with a fault, or without, and the process that runs the tests on it."""

    def __init__(self, clean: Path, fault: tuple[str, str, str, str], first: str) -> None:
        self.name, self.file, old, new = fault
        self.start, self.folder = time.monotonic(), tempfile.TemporaryDirectory(prefix="mutant-")
        self.tree = Path(self.folder.name).resolve()
        copy_sources(clean, self.tree)
        arguments = (self.tree, self.file, old, new, first)
        self.process = multiprocessing.get_context("fork").Process(target=run, args=arguments)
        self.process.start()

    def finish(self) -> str:
        """Prints the line of the table and returns the outcome."""
        self.process.join()
        outcome, detail = judge(self.process.exitcode, (self.tree / "output").read_text(errors="replace"))
        seconds = time.monotonic() - self.start
        self.folder.cleanup()
        shown = "passed" if not self.file and outcome == "SURVIVED" else outcome
        print(f"{shown:9} {seconds:5.1f} s  {self.file:16} {self.name:48} {detail}", flush=True)
        return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "-k", metavar="WORDS", default="", help="only faults with these words in file or name"
    )
    parser.add_argument("-j", metavar="JOBS", type=int, default=2, help="faults at a time (default 2)")
    parser.add_argument("--sample", metavar="N", type=int, help="try about N faults, spread over the list")
    parser.add_argument("--shard", metavar="K", type=int, default=0, help="which of such samples (default 0)")
    args = parser.parse_args()
    for module in PRELOAD:
        importlib.import_module(module)
    todo = [(fault, first) for first, faults in {**FAULTS, **own_faults()}.items() for fault in faults]
    todo = [(fault, first) for fault, first in todo if args.k in f"{fault[1]} {fault[0]}"]
    whole = len(todo)
    if args.sample is not None and (parts := -(-whole // args.sample)) > 1:
        todo = todo[args.shard % parts :: parts]
        print(f"{len(todo)} of {whole} faults: sample {args.shard % parts} of {parts}")
    outcomes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        clean = Path(folder).resolve()
        copy_sources(ROOT, clean)
        if lost := misplaced([fault for fault, _ in todo], clean):  # before anything slow
            print("\n".join(lost))
            return 2
        compile_kernels(clean)
        unchanged = ("(no fault)", "", "", "")
        queue, running = [(unchanged, "oracle"), *todo], []
        while queue or running:
            while queue and len(running) < args.j:
                fault, first = queue.pop(0)
                running.append(Run(clean, fault, first))
            connection.wait([one.process.sentinel for one in running])
            for one in [one for one in running if not one.process.is_alive()]:
                running.remove(one)
                outcome = one.finish()
                if one.file:
                    outcomes.append(outcome)
                elif outcome != "SURVIVED":
                    print("the tests do not pass without a fault")
                    outcomes.append("BROKEN")
    print(f"{outcomes.count('killed')} of {len(todo)} faults were noticed")
    return 2 if "BROKEN" in outcomes else int("SURVIVED" in outcomes)


if __name__ == "__main__":
    sys.exit(main())
