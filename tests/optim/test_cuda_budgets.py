"""The machine code of the CUDA kernels costs no more than it should; see benchmarks/sass.py.

What a regression names is the kernel, the card and the line of source.
"""

import functools
import re
from collections import Counter

import pytest
from tables import FIRST, RULES, all_kinds

from benchmarks import sass
from optim.engine import cuda, native

pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC comes with the CUDA builds of torch")
try:
    sass.tool("nvdisasm"), sass.tool("cuobjdump")
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

CARDS = (80, 90, 100, 120)
LANE = 8  # elements of a tile that are one lane's
SIZE = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
PARAMETER, STATE, ROUNDING = (
    {number: str(kind).removeprefix("torch.") for kind, number in names.items()}
    for names in (native.PARAMETER, native.STATE, native.ROUNDING)
)


@functools.cache
def instances(name):
    return {cuda.instance(RULES[name], kinds)[0]: kinds for kinds in all_kinds(RULES[name])}


@functools.cache
def compiled(name, arch, whole):
    """The kernels of a rule for a card: all, or those in float32."""
    lines = dict(cuda.instance(RULES[name], kinds) for kinds in instances(name).values())
    lines = {kernel: line for kernel, line in lines.items() if whole or kernel.split("_")[-4] == "0"}
    cubin = cuda.compile_kernels("".join(lines.values()), arch, more=["--generate-line-info"])
    functions, usage = sass.functions(cubin), sass.usage(cubin)
    return {
        kernel: (functions[f"{kernel}_step"], usage[f"{kernel}_step"], usage[f"{kernel}_prepare"])
        for kernel in lines
    }


each_rule_and_card = pytest.mark.parametrize(
    ("name", "arch", "whole"),
    [
        pytest.param(
            name,
            arch,
            whole,
            marks=() if not whole and name in FIRST.values() and arch == 90 else pytest.mark.static,
        )
        for name in RULES
        for arch in CARDS
        for whole in (False, True)
        if whole or arch == 90
    ],
)


@each_rule_and_card
def test_registers_and_memory(name, arch, whole):
    """No spills: two blocks fit a multiprocessor, and nothing of the step is in local memory."""
    for kernel, (_, step, prepare) in compiled(name, arch, whole).items():
        parameter = PARAMETER[instances(name)[kernel].parameter]
        limit = 255 if parameter == "float64" else 128
        assert step.registers <= limit, f"{kernel}, sm_{arch}: {step.registers} registers"
        assert step.stack == step.local == 0, f"{kernel}, sm_{arch}: spills {step.stack + step.local} bytes"
        assert step.shared <= 1024, f"{kernel}, sm_{arch}: {step.shared} bytes of shared memory"
        assert prepare.registers <= 128, f"{kernel}, sm_{arch}: {prepare.registers} registers in prepare"


@each_rule_and_card
def test_accesses_of_a_whole_tile_are_wide(name, arch, whole):
    """16 bytes of the widest array, as many elements of the others, and nothing a second time."""
    for kernel, (step, _, _) in compiled(name, arch, whole).items():
        expected = accesses(name, instances(name)[kernel])
        found = Counter((x.name[:2], x.width) for x in step.tile() if x.is_global)
        lines = [f"{x.line}: {x.guard} {x.opcode}" for x in step.tile() if x.is_global]
        for access, count in expected.items():
            assert found[access] >= count, f"{kernel}, sm_{arch}: {found} instead of {expected}; {lines}"
        narrow = [
            line
            for line, x in zip(lines, (x for x in step.tile() if x.is_global), strict=True)
            if x.width < 4
        ]
        assert not narrow, f"{kernel}, sm_{arch}: {narrow}"


def accesses(name, kinds):
    """How many loads and stores of how many bytes a lane makes for a whole tile; rules' factors not counted."""
    rule, size = RULES[name], SIZE[PARAMETER[kinds.parameter]]
    state = {"None": size, "float32": 4, "bfloat16": 2, "int8": 1}[str(STATE[kinds.state])]
    if kinds.parameter == native.PARAMETER_FLOAT64 or not rule.states:
        state = size
    vector = 16 // max(size, state)
    groups, states = LANE // vector, len(rule.states) - kinds.taken
    counts = Counter()
    counts["LD", vector * size] += groups * (2 + kinds.taken - (name == "lamb"))
    counts["ST", vector * size] += groups * (name != "lamb_moments")
    counts["LD", vector * state] += groups * states
    counts["ST", vector * state] += groups * states * (name != "lamb")
    if ROUNDING[kinds.rounding] == "kahan":
        counts["LD", vector * 2] += groups
        counts["ST", vector * 2] += groups
    return +counts


@each_rule_and_card
def test_instructions_of_an_element(name, arch, whole):
    for kernel, (step, _, _) in compiled(name, arch, whole).items():
        count, limit = len(step.tile()) / LANE, budget(name, instances(name)[kernel])
        assert count <= limit, f"{kernel}, sm_{arch}: {count:.0f} instructions an element, budget {limit}"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FIRST.values() else pytest.mark.static) for name in RULES]
)
def test_arithmetic_is_that_of_the_cpu(name):
    """No contraction, no approximation, no subnormal number set to zero."""
    lines = dict(cuda.instance(RULES[name], kinds) for kinds in instances(name).values())
    text = cuda.compile_kernels("".join(lines.values()), 90, "PTX").decode()
    found = re.findall(r"^.*(?:\bfma\.rn\.f32|\.ftz\.f32|\.approx\.f32|div\.full).*$", text, re.MULTILINE)
    assert not found
