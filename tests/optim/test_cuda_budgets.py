"""The machine code of the CUDA kernels costs no more than it should; see benchmarks/sass.py.

A regression names the kernel, the card and the lines of source.
"""

import functools
import re
from collections import Counter

import pytest
import torch
from tables import FIRST, RULES, all_kinds

import adan_optim
from adan_optim.engine import cuda, cuda_sums, native, storage
from benchmarks import sass

pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC comes with the CUDA builds of torch")
try:
    sass.tool("nvdisasm"), sass.tool("cuobjdump")
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

CARDS = (80, 90, 100, 120)
LANE = 8  # elements of a tile that are one lane's
SIZE = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2, "int8": 1}
PARAMETER = {number: str(dtype).removeprefix("torch.") for dtype, number in native.PARAMETER.items()}
STATE, ROUNDING = ({number: kind for kind, number in n.items()} for n in (native.STATE, native.ROUNDING))

# Instructions an element that a rule takes in float32, and what other ways to keep tensors add: conversions
# of the parameter and the gradient; those of each state; the noise, which all share; rounding the parameter.
RULE = {"adan": 54, "adamw": 41, "adam": 44, "sophia": 30, "lion": 21, "lars": 42, "lars_plain": 38}
RULE |= {"adam_mini": 38, "adafactor": 38, "adafactor_momentum": 41, "lamb_moments": 52, "lamb": 62}
RULE |= {"nadamw": 43, "ademamix": 47, "mars_correction": 14, "mars": 73}
RULE |= {"schedule_free_adamw": 72, "schedule_free_adan": 86}
RULE |= {"prodigy": 59, "prodigy_adan": 73}
# What the two passes with caution take besides.
CAUTION = {"agreement": 6, "cautious": 32}
OF_PARAMETER = {"float32": 0, "bfloat16": 4, "float16": 4}
OF_STATE = {"float32": 0, "bfloat16": 6, "int8": 16, "like bfloat16": 2, "like float16": 2}
OF_NOISE = {"bfloat16": 4, "int8": 10}  # with the maxima and factors of 8-bit states
OF_ROUNDING = {"nearest": 0, "stochastic": 7, "kahan": 8, "split": 12}
TAKEN = 4  # a previous gradient instead of a state
# Bytes of a thread that may be spilled: a lane's elements of eight arrays are half of its registers.
SPILLS = {"prodigy_adan": 32}


def budget(name, parameter, state, rounding, taken=False):
    """Instructions an element that a kernel may take."""
    base, _, with_caution = name.rpartition("_")
    plain = base if with_caution in CAUTION else name
    rule = RULE.get(plain, 0) + CAUTION.get(with_caution, 0)  # 0 for a new rule: the message has its number
    count, noise = rule + OF_PARAMETER[parameter] + TAKEN * taken, 0
    if states := len(RULES[name].states) - taken:
        count += states * OF_STATE[state]
        noise = OF_NOISE.get(state, 0)
    if rounding == "stochastic":
        noise = noise or OF_NOISE["bfloat16"]
    return 1.05 * (count + noise + OF_ROUNDING[rounding])


@functools.cache
def instances(name):
    return {cuda.instance(RULES[name], kinds)[0]: kinds for kinds in all_kinds(RULES[name])}


def described(name, kernel):
    """The names of a kernel's parameter, state and rounding."""
    kinds = instances(name)[kernel]
    parameter = PARAMETER[kinds.parameter]
    state = STATE[kinds.state] or (f"like {parameter}" if SIZE[parameter] < 4 else parameter)
    if not RULES[name].states or parameter == "float64":
        state = parameter
    return parameter, state, ROUNDING[kinds.rounding]


@functools.cache
def compiled(name, arch, whole):
    """The kernels of a rule for a card, all or those of float32: the step, and what both kernels take."""
    lines = dict(cuda.instance(RULES[name], kinds) for kinds in instances(name).values())
    lines = {kernel: line for kernel, line in lines.items() if whole or kernel.startswith(f"{name}_0_")}
    cubin = cuda.compile_kernels("".join(lines.values()), arch, more=["--generate-line-info"])
    functions, usage = sass.functions(cubin), sass.usage(cubin)
    return {
        kernel: (functions[f"{kernel}_step"], usage[f"{kernel}_step"], usage[f"{kernel}_prepare"])
        for kernel in lines
    }


def each(*, daily, static):
    """Parameters of a test, those of `static` for `make test-cuda-static`."""
    marked = (case if isinstance(case, tuple) else (case,) for case in static)
    return [*daily, *(pytest.param(*case, marks=pytest.mark.static) for case in marked)]


each_rule_and_card = pytest.mark.parametrize(
    ("name", "arch", "whole"),
    each(
        daily=[(name, 90, False) for name in FIRST.values()],
        static=[(name, arch, True) for name in RULES for arch in CARDS],
    ),
)


@each_rule_and_card
def test_registers_and_memory(name, arch, whole):
    """No spills: two blocks fit a multiprocessor, and nothing of the step is in local memory."""
    for kernel, (_, step, prepare) in compiled(name, arch, whole).items():
        limit = 255 if described(name, kernel)[0] == "float64" else 128
        assert step.registers <= limit, f"{kernel}, sm_{arch}: {step.registers} registers"
        spilled = step.stack + step.local
        assert spilled <= SPILLS.get(name, 0), f"{kernel}, sm_{arch}: spills {spilled} bytes"
        assert step.shared <= 4096, f"{kernel}, sm_{arch}: {step.shared} bytes of shared memory"
        assert prepare.registers <= 128, f"{kernel}, sm_{arch}: {prepare.registers} registers in prepare"


@each_rule_and_card
def test_accesses_of_a_whole_tile_are_wide(name, arch, whole):
    """16 bytes of the widest array and as many elements of the others; factors and maxima are 4 bytes."""
    for kernel, (step, _, _) in compiled(name, arch, whole).items():
        made = [x for x in step.tile() if x.is_global]
        lines = "".join(f"\n{x.line}: {x.guard} {x.opcode}" for x in made)
        found = Counter((x.name[:2], x.width) for x in made)
        for (access, width), count in accesses(name, kernel).items():
            number = found[access, width]
            assert number >= count, f"{kernel}, sm_{arch}: {number} {access} of {width} B, not {count}{lines}"
        assert all(x.width >= 4 for x in made), f"{kernel}, sm_{arch}: narrow accesses{lines}"


def accesses(name, kernel):
    """How many loads and stores of how many bytes a lane makes for the parameter's elements and states."""
    kinds, (parameter, state, rounding) = instances(name)[kernel], described(name, kernel)
    size, of_state = SIZE[parameter], SIZE[state.removeprefix("like ")]
    vector = 16 // max(size, of_state)
    groups, states = LANE // vector, len(RULES[name].states) - kinds.taken
    unread, unwritten = RULES[name].unread, RULES[name].unwritten
    counts = Counter({("LD", vector * size): groups * (2 + kinds.taken - len(unread))})
    counts["ST", vector * size] += groups * ("param" not in unwritten)
    counts["LD", vector * of_state] += groups * states
    written = [x for x in RULES[name].written_states if not (kinds.taken and x == RULES[name].previous)]
    counts["ST", vector * of_state] += groups * len(written)
    if rounding in storage.RESTS and "param" not in unread:
        counts["LD", vector * 2] += groups
        counts["ST", vector * 2] += groups
    return +counts


@each_rule_and_card
def test_instructions_of_an_element(name, arch, whole):
    for kernel, (step, _, _) in compiled(name, arch, whole).items():
        if (kind := described(name, kernel))[0] == "float64":  # cards differ too much in it
            continue
        taken = instances(name)[kernel].taken
        count, limit = len(step.tile()) / LANE, budget(name, *kind, taken)
        assert count <= limit, f"{kernel}, sm_{arch}: {count:.0f} instructions an element, not {limit:.0f}"


def test_budgets():
    """What docs/optim.md states."""
    assert budget("adan", "float32", "float32", "nearest") <= 60
    assert budget("adan", "bfloat16", "bfloat16", "nearest") <= 95
    assert budget("adan", "bfloat16", "int8", "nearest") <= 140
    factors = {rule.name for card in adan_optim.CARDS.values() for rule in card.fused_rules if rule.factors}
    factors -= {"mars", "schedule_free_adamw", "schedule_free_adan"}
    assert max(budget(name, "float32", "float32", "nearest") for name in factors) <= 68


# ---- sums of squares

# Instructions an element that a thread takes for a whole chunk: `rows` with weights, `tiles` without its
# columns, which are a load from shared memory and an addition more.
SUMS = {"float32": {"rows": 7.7, "tiles": 6.1}, "bfloat16": {"rows": 8.8, "tiles": 7.1}}
SUMS |= {"float16": {"rows": 17, "tiles": 15.3}}


@pytest.mark.parametrize("arch", each(daily=[90], static=[arch for arch in CARDS if arch != 90]))
@pytest.mark.parametrize("dtype", cuda_sums.TYPES, ids=str)
def test_sums(dtype, arch):
    """No spills, and one load for each element; those of a team are one run of memory."""
    name, lines = cuda_sums.instance(dtype)
    cubin = cuda.compile_kernels(lines, arch)
    functions, usage = sass.functions(cubin), sass.usage(cubin)
    kind, work = PARAMETER[native.PARAMETER[dtype]], torch.promote_types(dtype, torch.float32).itemsize
    for kernel in ("rows", "tiles", "finish"):
        taken = usage[f"{name}_{kernel}"]
        assert taken.registers <= (128 if work == 4 else 255), f"{kernel}: {taken.registers} registers"
        assert taken.stack == taken.local == 0, f"{kernel} spills {taken.stack + taken.local} bytes"
        assert taken.shared <= 48 * 1024 / (8 // work), f"{kernel}: {taken.shared} bytes of shared memory"
    each_ = cuda_sums.CHAIN // cuda_sums.LANES  # elements of a thread
    for kernel in ("rows", "tiles"):
        step = functions[f"{name}_{kernel}"].tile()
        found = Counter(x.width for x in step if x.is_global and x.name == "LDG")
        assert found == Counter([dtype.itemsize] * each_ + [work] * each_ * (kernel == "rows")), (
            f"{kernel}: {found}"
        )
        if kind in SUMS:
            count, limit = len(step) / each_, SUMS[kind][kernel]
            assert count <= limit, (
                f"{name}_{kernel}, sm_{arch}: {count:.1f} instructions an element, not {limit}"
            )


def test_arithmetic_of_sums_is_that_of_the_cpu():
    lines = "".join(cuda_sums.instance(dtype)[1] for dtype in cuda_sums.TYPES)
    assert_exact(cuda.compile_kernels(lines, 90, "PTX").decode())


@pytest.mark.parametrize(
    "name",
    each(
        daily=["adamw"],
        static=[name for name in RULES if name != "adamw"],
    ),
)
def test_arithmetic_is_that_of_the_cpu(name):
    """No contraction, no approximation, no subnormal number set to zero."""
    lines = dict(cuda.instance(RULES[name], kinds) for kinds in instances(name).values())
    assert_exact(cuda.compile_kernels("".join(lines.values()), 90, "PTX").decode())


def assert_exact(text):
    assert not re.findall(r"^.*(?:\bfma\.rn\.f32|\.ftz\.f32|\.approx\.f32|div\.full).*$", text, re.MULTILINE)
