"""What the optimizer tests share: the cases to run, gradients, and the comparison with the oracle.

The cases come from the capability cards: every optimizer x path x dtype. `VARIANTS` gives each optimizer the
option sets that make every option matter.
"""

import functools
import inspect

import numpy as np
import pytest
import torch
from oracle import RULES, Oracle

import optim
from optim import native

FLAGS = {
    "reference": dict(foreach=False, fused=False),
    "foreach": dict(foreach=True, fused=False),
    "fused": dict(fused=True),
}
NAMES = list(optim.CARDS)
OPTIMIZER_WIDE = ("max_grad_norm", "nonfinite", "foreach", "fused")

# Far from the defaults and from each other, so that no mistake hides: three different betas, weight decay
# and eps that move every digit.
_ADAN = dict(lr=0.07, betas=(0.7, 0.6, 0.8), eps=1e-8, weight_decay=0.0)
_ADAMW = dict(lr=0.07, betas=(0.7, 0.85), eps=1e-8, weight_decay=0.0)


def _common(base):
    return {
        "plain": base,
        "eps": {**base, "eps": 0.3},
        "decay": {**base, "weight_decay": 0.4, "eps": 0.01},
        "clip": {**base, "max_grad_norm": 1.5, "eps": 0.2, "weight_decay": 0.1},
        "no_need_to_clip": {**base, "max_grad_norm": 1e4, "eps": 0.2},
        "maximize": {**base, "maximize": True, "weight_decay": 0.3},
        "maximize_clip": {**base, "maximize": True, "max_grad_norm": 0.7},
    }


VARIANTS = {
    "adan": {
        **_common(_ADAN),
        "no_prox": {**_ADAN, "weight_decay": 0.4, "no_prox": True, "eps": 0.01},
        "beta1=0": {**_ADAN, "betas": (0.0, 0.9, 0.5), "weight_decay": 0.1},
        "beta3=0": {**_ADAN, "betas": (0.9, 0.3, 0.0), "eps": 0.1},
    },
    "adamw": {**_common(_ADAMW), "beta1=0": {**_ADAMW, "betas": (0.0, 0.5), "weight_decay": 0.1}},
}

PATHS = [(name, path) for name, card in optim.CARDS.items() for path in card.paths]
CASES = [(name, path, dtype) for name, path in PATHS for dtype in optim.CARDS[name].dtypes]


def case_id(value):
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


each_path = pytest.mark.parametrize(("name", "path"), PATHS)
each_name = pytest.mark.parametrize("name", NAMES)
each_case = pytest.mark.parametrize(("name", "path", "dtype"), CASES, ids=case_id)


def build(name, params, path=None, **options):
    """The optimizer on one path; where that path cannot run on this machine the test is skipped."""
    if path == "fused" and (reason := native.load()[1]):
        pytest.skip(reason)
    flags = FLAGS[path] if path else {}
    return optim.OPTIMIZERS[name](params, **{**VARIANTS[name]["decay"], **flags, **options})


@functools.cache
def options_of(name):
    return tuple(inspect.signature(optim.OPTIMIZERS[name]).parameters)[1:]


def random(shape, rng, dtype=torch.float32):
    """Numbers of either sign, 0.05 to about 4: no denominators near zero, which would magnify rounding."""
    x = rng.standard_normal(shape)
    return torch.as_tensor(np.sign(x) * (np.abs(x) + 0.05), dtype=torch.float64).to(dtype)


def make_params(shapes, rng, dtype=torch.float32):
    return [random(shape, rng, dtype).requires_grad_() for shape in shapes]


def set_grads(params, rng, like=None):
    """Newly allocated gradients, as after zero_grad(set_to_none=True) and a backward pass."""
    for p in params:
        p.grad = random(tuple(p.shape), rng, like or p.dtype)


def array(x):
    return x.detach().to(torch.float64).numpy(force=True).copy()


def oracle_of(optimizer):
    """An oracle with the optimizer's groups, options, parameters and states as they are now."""
    hyper_names = [*inspect.signature(RULES[optimizer.card.name][0]).parameters][4:]
    groups = [
        (
            [array(p) for p in group["params"]],
            {key: float(group[key]) if key == "lr" else group[key] for key in (*hyper_names, "maximize")},
        )
        for group in optimizer.param_groups
    ]
    oracle = Oracle(optimizer.card.name, groups, optimizer.max_grad_norm, optimizer.defaults["eps"])
    resync(oracle, optimizer)
    return oracle


def all_params(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def resync(oracle, optimizer):
    """Takes the optimizer's own parameters and states over into the oracle."""
    for i, p in enumerate(all_params(optimizer)):
        oracle.params[i] = array(p)
        state = optimizer.state.get(p)
        if state:
            oracle.steps[i] = int(state["step"])
            oracle.states[i] = {name: array(state[name]) for name in oracle.names}


def gradients(optimizer):
    return [None if p.grad is None else array(p.grad) for p in all_params(optimizer)]


# Single-step tolerances, for parameters, gradients and states of the order of one:
# float64 and float32 arithmetic: about a dozen operations, each within half an eps of its result.
# bfloat16 and float16 are computed in float32 and rounded once to nearest: half a unit in the last place of
# the storage type, and the float32 error on top. Rounding by truncation, or twice, is outside.
def tolerance(expected, dtype, steps=1):
    work = torch.promote_types(dtype, torch.float32)
    scale = np.maximum(1.0, np.abs(expected))
    error = 12 * torch.finfo(work).eps * scale * steps
    if work == dtype:
        return error
    info = torch.finfo(dtype)
    _, exponent = np.frexp(expected)  # |expected| in [2^(exponent - 1), 2^exponent)
    ulp = np.ldexp(info.eps, exponent - 1)
    return error + np.maximum(ulp, info.smallest_normal * info.eps) / 2


def compare(oracle, optimizer, steps=1):
    """Demands that the optimizer's parameters, states and step counts are the oracle's."""
    for i, p in enumerate(all_params(optimizer)):
        state = optimizer.state.get(p, {})
        assert int(state.get("step", 0)) == oracle.steps[i], f"parameter {i}: step count"
        pairs = {"parameter": (p, oracle.params[i])}
        if state:
            pairs |= {name: (state[name], oracle.states[i][name]) for name in oracle.names}
        for what, (ours, expected) in pairs.items():
            difference = np.abs(array(ours) - expected)
            bad = ~(difference <= tolerance(expected, p.dtype, steps))
            assert not bad.any(), (
                f"{what} of parameter {i} {tuple(p.shape)}, {bad.sum()} elements from {np.argwhere(bad)[0]}: "
                f"{array(ours)[bad][0]!r} instead of {expected[bad][0]!r}"
            )


def bits(x):
    """For comparisons bit for bit, NaN included."""
    x = x.detach().reshape(-1).clone(memory_format=torch.contiguous_format)
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def assert_same_bits(a, b):
    for x, y in zip(a, b, strict=True):
        assert torch.equal(bits(x), bits(y))


def tensors_of(optimizer):
    """Parameters, states and step counts, copied."""
    params = all_params(optimizer)
    states = [state[key] for p in params if (state := optimizer.state.get(p)) for key in sorted(state)]
    return [x.detach().clone() for x in params + states]
