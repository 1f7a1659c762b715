"""What the optimizer tests share: the cases to run, gradients, and the comparison with the oracle.

The cases come from the capability cards, every optimizer x path x dtype, and the option sets that make every
option matter from its definition (oracle.py).
"""

import functools
import inspect

import numpy as np
import pytest
import torch
from oracle import DEFINITIONS, Oracle

import adan_optim
from adan_optim.engine import native, storage

FLAGS = {
    "reference": dict(foreach=False, fused=False),
    "foreach": dict(foreach=True, fused=False),
    "fused": dict(fused=True),
}
NAMES = list(adan_optim.CARDS)
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


def _variants(definition):
    lacks = {"eps", "weight_decay"} - inspect.signature(definition.step).parameters.keys()

    def options(**more):
        return {**definition.BASE, **{key: value for key, value in more.items() if key not in lacks}}

    return {
        "plain": options(),
        "eps": options(eps=0.3),
        "decay": options(weight_decay=0.4, eps=0.01),
        "clip": options(max_grad_norm=1.5, eps=0.2, weight_decay=0.1),
        "no_need_to_clip": options(max_grad_norm=1e4, eps=0.2),
        "maximize": options(maximize=True, weight_decay=0.3),
        "maximize_clip": options(maximize=True, max_grad_norm=0.7),
        "caution": options(caution=True, weight_decay=0.2, eps=0.05),
        **definition.VARIANTS,
    }


if undefined := [name for name in NAMES if name not in DEFINITIONS]:
    raise pytest.UsageError(
        f"no definition of {undefined[0]}: write tests/optim/definitions/{undefined[0]}.py, "
        "see 'Add an optimizer' in CONTRIBUTING.md"
    )
VARIANTS = {name: _variants(DEFINITIONS[name]) for name in NAMES}


def unfused_options(name):
    """Options of an optimizer that its fused rule does not have."""
    caution = () if adan_optim.CARDS[name].cautious_rules else ("caution",)
    return (*getattr(DEFINITIONS[name], "UNFUSED", ()), *caution)


def variants_of(name, path):
    """The names of the option sets that a path of an optimizer can do."""
    left_out = unfused_options(name) if path == "fused" else ()
    return [variant for variant, options in VARIANTS[name].items() if not any(map(options.get, left_out))]


PATHS = [(name, path) for name, card in adan_optim.CARDS.items() for path in card.paths]


def can(name, path, dtype, kept=None):
    """Whether a path of an optimizer is for parameters and states that are kept so."""
    kept, card = kept or {}, adan_optim.CARDS[name]
    small = dtype.itemsize < 4 or kept.get("state_dtype") in ("bfloat16", "int8")
    rules = card.cautious_rules if kept.get("caution") else card.fused_rules
    if path == "fused" and card.iterates and kept.get("state_dtype") == "int8":
        return False
    return path != "fused" or not small or all(rule.small for rule in rules)


CASES = [
    (name, path, dtype)
    for name, path in PATHS
    for dtype in adan_optim.CARDS[name].dtypes
    if can(name, path, dtype)
]


def case_id(value):
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


# How parameters and states are kept: parameter dtype and options. int8 also for the smallest tensors.
_INT8 = dict(state_dtype="int8", min_int8_size=0)
KEPT = {
    **{case: (dtype, {}) for case, dtype in {"f32": torch.float32, "f64": torch.float64}.items()},
    **{case: (dtype, {}) for case, dtype in {"bf16": torch.bfloat16, "f16": torch.float16}.items()},
    "f32_bfloat16": (torch.float32, dict(state_dtype="bfloat16")),
    "f32_int8": (torch.float32, _INT8),
    "bf16_float32": (torch.bfloat16, dict(state_dtype="float32")),
    "bf16_stochastic": (torch.bfloat16, dict(param_rounding="stochastic")),
    "bf16_bfloat16_stochastic": (torch.bfloat16, dict(state_dtype="bfloat16", param_rounding="stochastic")),
    "bf16_int8_kahan": (torch.bfloat16, dict(**_INT8, param_rounding="kahan")),
    "bf16_float32_split": (torch.bfloat16, dict(state_dtype="float32", param_rounding="split")),
    "bf16_int8_split": (torch.bfloat16, dict(**_INT8, param_rounding="split")),
    "f16_int8": (torch.float16, _INT8),
    "f16_float32": (torch.float16, dict(state_dtype="float32")),
}
TAKEN = {
    f"{case}_taken": (KEPT[case][0], {**KEPT[case][1], "take_gradients": True})
    for case in ("f32", "f64", "f32_bfloat16", "f32_int8", "f16", "bf16_int8_kahan", "bf16_float32_split")
}


def kept_by(name, path=None):
    """The cases of KEPT that an optimizer, or one of its paths, has."""
    cases = {**KEPT, **TAKEN} if adan_optim.CARDS[name].previous else KEPT
    return {case: kept for case, kept in cases.items() if can(name, path, *kept)}


each_kept = pytest.mark.parametrize(
    ("name", "path", "dtype", "kept"),
    [
        pytest.param(name, path, dtype, kept, id=f"{name}-{path}-{case}")
        for name, path in PATHS
        for case, (dtype, kept) in kept_by(name, path).items()
    ],
)
each_path = pytest.mark.parametrize(("name", "path"), PATHS)


def needs_torch(first, what):
    """Skips a test with torch before version `first`, which lacks what the test is about."""
    return pytest.mark.skipif(first > TORCH, reason=f"{what}: from torch {first[0]}.{first[1]} on")


needs_names = needs_torch((2, 6), "optimizers take named parameters")
needs_fsdp2 = pytest.mark.skipif(
    TORCH < (2, 7) or TORCH == (2, 8),
    reason="FSDP2 on CPUs: from torch 2.7 on, but 2.8 adds up float32 gradients instead of averaging them",
)
needs_kinds = needs_torch((2, 7), "state dicts tell Adam from AdamW")
each_name = pytest.mark.parametrize("name", NAMES)
FUSED = [name for name, path in PATHS if path == "fused"]
each_fused_name = pytest.mark.parametrize("name", FUSED)
each_case = pytest.mark.parametrize(("name", "path", "dtype"), CASES, ids=case_id)


def build(name, params, path=None, **options):
    """The optimizer on one path; where that path cannot run on this machine the test is skipped.

    Where the path is not for tensors that are kept so, it is the optimizer's own choice.
    """
    if path == "fused" and (reason := native.load()[1]):
        pytest.skip(reason)
    params = list(params)
    groups = params if isinstance(params[0], dict) else [{"params": params}]
    fuses = getattr(DEFINITIONS[name], "fuses", lambda p, options: True)
    for group in groups if path == "fused" else ():
        group = {**options, **group}
        if not all(can(name, path, p.dtype, group) and fuses(p, group) for p in group["params"]):
            path = None
    flags = FLAGS[path] if path else {}
    options = {**VARIANTS[name]["decay"], **flags, **options}
    if "eps" not in options_of(name):
        options.pop("eps", None)
    return adan_optim.OPTIMIZERS[name](params, **options)


def prepared(optimizer):
    """The optimizer after what a training loop gives it besides gradients, if there is such a thing."""
    getattr(DEFINITIONS[optimizer.card.name], "prepare", lambda _: None)(optimizer)
    return optimizer


@functools.cache
def options_of(name):
    return tuple(inspect.signature(adan_optim.OPTIMIZERS[name]).parameters)[1:]


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
    hyper_names = [*inspect.signature(DEFINITIONS[optimizer.card.name].step).parameters][4:]
    groups = [
        (
            [array(p) for p in group["params"]],
            {
                key: float(group[key]) if isinstance(group[key], torch.Tensor) else group[key]
                for key in (*hyper_names, "maximize")
            },
        )
        for group in optimizer.param_groups
    ]
    oracle = Oracle(optimizer.card.name, groups, optimizer.max_grad_norm, optimizer.defaults.get("eps", 0.0))
    resync(oracle, optimizer)
    return oracle


def all_params(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def resync(oracle, optimizer):
    """Takes the optimizer's own parameters and states over into the oracle."""
    for hyper in oracle.hyper:
        hyper.update({name: float(optimizer.param_groups[0][name]) for name in oracle.shared})
    for i, p in enumerate(all_params(optimizer)):
        oracle.params[i] = array(p)
        oracle.jumps[i] = np.full_like(oracle.params[i], np.inf)
        state = optimizer.state.get(p)
        if state:
            oracle.steps[i] = int(state["step"])
            oracle.params[i] = array(storage.exact(p, state))
            oracle.states[i] = {name: value_of(optimizer, state, name) for name in oracle.states[i]}


def value_of(optimizer, state, name):
    """A state as a float64 array, however it is kept."""
    card = optimizer.card
    if name == card.previous and "pre_grad" in state:
        return -float(state["pre_grad_scale"]) * array(state["pre_grad"])
    return array(storage.load(state, name, name not in card.nonnegative))


def gradients(optimizer):
    return [None if p.grad is None else array(p.grad) for p in all_params(optimizer)]


def roundings_of(name):
    return getattr(DEFINITIONS[name], "ROUNDINGS", 12)


def unit_options(name):
    """Options with which equal gradients move a parameter of ones by about lr, if it takes any."""
    return getattr(DEFINITIONS[name], "UNIT", {})


def full_states(optimizer, p):
    """The names of the states of a parameter that have its shape."""
    group = next(group for group in optimizer.param_groups if any(p is q for q in group["params"]))
    return optimizer.state_spec(p, group).full


# Single-step tolerances, for parameters, gradients and states of the order of one:
# float64 and float32 arithmetic: about a dozen operations, each within half an eps of its result.
# bfloat16 and float16 are computed in float32 and rounded once to nearest: half a unit in the last place of
# the storage type, and the float32 error on top. Rounding by truncation, or twice, is outside.
# Stochastic rounding: a whole unit. 8-bit codes: their step, see csrc/storage.h.
def tolerance(expected, dtype, steps=1, units=0.5, roundings=12):
    work = torch.promote_types(dtype, torch.float32)
    scale = np.maximum(1.0, np.abs(expected))
    error = roundings * torch.finfo(work).eps * scale * steps
    if work == dtype:
        return error
    info = torch.finfo(dtype)
    _, exponent = np.frexp(expected)  # |expected| in [2^(exponent - 1), 2^exponent)
    ulp = np.ldexp(info.eps, exponent - 1)
    return error + np.maximum(ulp, info.smallest_normal * info.eps) * units


def tolerance_of_codes(expected, codes, maxima, signed):
    """y / 16, where y = 2 + |x| top / maximum, in units of x."""
    at = maxima.double().repeat_interleave(storage.BLOCK)[: codes.numel()]
    at = array(at.as_strided(codes.shape, codes.stride()))
    top = 494 if signed else 126974
    return (np.abs(expected) + 2 * at / top) / 16 + tolerance(expected, torch.float32)


def tolerance_of(optimizer, p, state, name, expected, steps):
    card, kept = optimizer.card, optimizer.param_groups[0]["state_dtype"]
    roundings = roundings_of(card.name)
    if name == card.previous and "pre_grad" in state:
        return tolerance(expected, torch.promote_types(p.dtype, torch.float32), steps, roundings=roundings)
    if f"{name}_scale" in state:
        return tolerance_of_codes(expected, state[name], state[f"{name}_scale"], name not in card.nonnegative)
    units = 1.0 if kept == "bfloat16" else 0.5
    return tolerance(expected, state[name].dtype, steps, units, roundings)


def undecided(oracle, optimizer, steps=1):
    """Masks of the elements that rounding takes to either side of a discontinuity of the rule (oracle.jump).

    At most 1 % of them, or a single one: else the comparison would not say much.
    """
    masks = []
    for p, distance in zip(all_params(optimizer), oracle.jumps, strict=True):
        work = torch.promote_types(p.dtype, torch.float32)
        masks.append(
            distance
            <= tolerance(np.zeros_like(distance), work, steps, roundings=roundings_of(optimizer.card.name))
        )
    left_out, elements = sum(int(mask.sum()) for mask in masks), sum(mask.size for mask in masks)
    why = f"{left_out} of {elements} elements are at a discontinuity; other betas in the definition may help"
    assert left_out <= max(1, elements // 100), why
    return masks


def compare(oracle, optimizer, steps=1):
    """Demands that the optimizer's parameters, states and step counts are the oracle's."""
    skipped = undecided(oracle, optimizer, steps)
    work = torch.promote_types(all_params(optimizer)[0].dtype, torch.float32)
    for name in oracle.shared:
        ours, expected = float(optimizer.param_groups[0][name]), oracle.hyper[0][name]
        allowed = tolerance(expected, work, steps, roundings=roundings_of(optimizer.card.name))
        assert abs(ours - expected) <= allowed, f"{name}: {ours!r} instead of {expected!r}"
    for i, p in enumerate(all_params(optimizer)):
        state = optimizer.state.get(p, {})
        assert int(state.get("step", 0)) == oracle.steps[i], f"parameter {i}: step count"
        rounding = optimizer.param_groups[0]["param_rounding"] if p.dtype == torch.bfloat16 else "nearest"
        ours, expected = array(p), oracle.params[i]
        roundings = roundings_of(optimizer.card.name)
        units = 1.0 if rounding == "stochastic" else 0.5
        allowed = tolerance(expected, p.dtype, steps, units, roundings)
        if rounding in storage.RESTS and state:  # with Kahan's, together they have 16 bits
            ours = array(storage.exact(p, state))
            allowed = tolerance(expected, torch.float32, steps, 0.5, roundings)
            allowed += (rounding == "kahan") * 2.0**-16 * np.abs(expected)
        rows = [("parameter", ours, expected, allowed)]
        for name in oracle.states[i] if state else ():
            expected = oracle.states[i][name]
            allowed = tolerance_of(optimizer, p, state, name, expected, steps)
            rows.append((name, value_of(optimizer, state, name), expected, allowed))
        for what, ours, expected, allowed in rows:
            difference = np.abs(ours - expected)
            bad = ~(difference <= allowed)
            if what == "parameter":
                bad &= ~skipped[i]
            assert not bad.any(), (
                f"{what} of parameter {i} {tuple(p.shape)}, {bad.sum()} elements from {np.argwhere(bad)[0]}: "
                f"{ours[bad][0]!r} instead of {expected[bad][0]!r}"
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
