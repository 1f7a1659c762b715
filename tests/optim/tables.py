"""Tables of tensors for the tests of the kernels: every way to keep tensors, in memory with guards around."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness import FUSED, bits

import adan_optim
from adan_optim.engine import native, storage

SIZES = [0, *range(1, 6), 255, 256, 257, 0, 1023, 1024, 1025, 4095, 4096, 4097, 5000, 65535, 65536, 65537, 0]
LENGTHS = [1, 3, 255, 256, 257, 1024, 0]  # of rows; 0 is all of a tensor
STATES = {0: None, 1: torch.float32, 2: torch.bfloat16, 3: torch.uint8}


def all_kinds(rule):
    """Every combination that the kernels of a rule know."""
    for (dtype, parameter), state, rounding, taken in itertools.product(
        native.PARAMETER.items(), STATES, native.ROUNDING.values(), (False, True)
    ):
        if (rounding and dtype != torch.bfloat16) or (taken and not rule.previous):
            continue
        if not rule.small and not (dtype.itemsize >= 4 and state in (0, 1)):
            continue
        if dtype != torch.float64 or state == 0:
            yield native.Kinds(parameter, state, rounding, taken)


OF_CARDS = [(name, rule) for name in FUSED for rule in adan_optim.CARDS[name].fused_rules]
OF_CARDS += [(name, rule) for name in FUSED for rule in adan_optim.CARDS[name].cautious_rules]
RULES = {rule.name: rule for _, rule in OF_CARDS}
RULES["adam_agreement"] = replace(RULES["adam_agreement"], unread=())  # it adds the decay to the gradient
OPTIMIZER = {rule.name: name for name, rule in OF_CARDS}
# The kernels are compiled first: in `make test` those of one rule with each kind of input that rules have.
FIRST = {(bool(rule.previous), rule.factors, bool(rule.sums)): name for name, rule in reversed(RULES.items())}


def of_rules(daily):
    """Return the mark of a test of every rule; in `make test`, of these."""
    marked = (pytest.param(name, marks=() if name in daily else pytest.mark.exhaustive) for name in RULES)
    return pytest.mark.parametrize("name", [*marked])


each_rule = of_rules(FIRST.values())
each_emulated_rule = of_rules(("adan",))  # compiled for the CPU: up to 20 s each


def hyper_of(name, **options):
    """The numbers of a rule for an optimizer's options."""
    optimizer = adan_optim.OPTIMIZERS[OPTIMIZER[name]]([torch.zeros(1)], **options)
    return tuple(map(float, optimizer.fused_hyper(optimizer.param_groups[0])))


class Arena:
    """Tensors in one piece of memory, with guards between.

    In odd rows a tensor here and there, depending on `turn`, is not aligned to 16 bytes: so that each of a
    row's tensors is once the only one.
    """

    def __init__(self, sizes, dtype, device, turn):
        step = 16 // dtype.itemsize
        starts, at = [], step
        for i, size in enumerate(sizes):
            starts.append(at + (i % 2 and (turn + i // 2) % 7 == 0))
            at += (size // step + 3) * step
        self.memory = torch.full((at,), 77, dtype=dtype, device=device)
        self.views = [self.memory[start : start + size] for start, size in zip(starts, sizes, strict=True)]

    def fill(self, rng):
        """Random numbers, the same on every device and for every dtype."""
        for view in self.views:
            view.copy_(torch.as_tensor(rng.standard_normal(view.numel())).to(view.dtype))


def make(rule, kinds, sizes=SIZES, device="cpu"):
    """Parameters of random numbers, gradients and states.

    Gradients take turns between two arenas, so that one can be the previous gradient of the other.
    """
    dtype = {number: dtype for dtype, number in native.PARAMETER.items()}[kinds.parameter]
    state_dtype = dtype if kinds.parameter == 1 else STATES[kinds.state] or dtype
    arenas: dict[str, Arena] = {}

    def add(name, dtype, sizes=sizes):
        arenas[name] = Arena(sizes, dtype, device, turn=len(arenas))

    for name in ("param", "even", "odd"):
        add(name, dtype)
    ones = [1] * len(sizes)
    add("step", torch.float32, ones)
    if rest := storage.RESTS.get(storage.ROUNDINGS[kinds.rounding]):
        add(rest.name, rest.dtype)
    for name in rule.states:
        if kinds.taken and name == rule.previous:
            add("pre_grad_scale", torch.promote_types(dtype, torch.float32), ones)
        else:
            add(name, state_dtype)
    if state_dtype == torch.uint8:
        for name in [name for name in rule.states if name in arenas]:
            add(f"{name}_scale", torch.float32, [-(-size // 256) for size in sizes])
    work = torch.promote_types(dtype, torch.float32)
    lengths = [LENGTHS[i % len(LENGTHS)] or max(size, 1) for i, size in enumerate(sizes)]
    if rule.factors:
        add("rows", work, [-(-size // length) for size, length in zip(sizes, lengths, strict=True)])
        add("columns", work, lengths)
    if rule.sums:
        add("block_sums", work, [-(-size // 256) * rule.sums for size in sizes])
    for name, arena in arenas.items():
        for view in arena.views:  # a pass that does not count steps finds the first one counted
            view.fill_(1 if name == "step" and rule.name == "lamb" else 0)
        if name in ("param", "rows", "columns"):
            arena.fill(np.random.default_rng(0))
    states = []
    for i in range(len(sizes)):
        apart = ("param", "even", "odd", "rows", "columns", "block_sums")
        state = {name: arena.views[i] for name, arena in arenas.items() if name not in apart}
        if kinds.taken:
            state["pre_grad"] = arenas["odd"].views[i]
        states.append(state)
    factors = factors_in(arenas, lengths) if rule.factors else []
    sums = arenas["block_sums"].views if rule.sums else ()
    return SimpleNamespace(
        rule=rule,
        kinds=kinds,
        arenas=arenas,
        params=arenas["param"].views,
        states=states,
        more=(factors, sums),
        made=0,
    )


def factors_in(arenas, lengths):
    """Factors in the memory of the arenas, now and then without rows or columns."""
    views = zip(arenas["rows"].views, arenas["columns"].views, lengths, strict=True)
    return [
        native.Factors(rows if i % 3 else None, columns if i % 3 < 2 else None, length)
        for i, (rows, columns, length) in enumerate(views)
    ]


def step(tensors, make_table, hyper, factor=1.0, scale=None, **device_numbers):
    """A step on new gradients, as an optimizer makes it: with the table of the step before."""
    arena = tensors.arenas["odd" if tensors.made % 2 else "even"]
    arena.fill(np.random.default_rng(100 + tensors.made))
    for p, g in zip(tensors.params, arena.views, strict=True):
        p.grad = g
    if tensors.made:
        assert tensors.table.refresh()
    else:
        tensors.table = make_table(
            tensors.rule, tensors.kinds, tensors.params, arena.views, tensors.states, *tensors.more
        )
    tensors.table.step(hyper, factor, scale, **device_numbers)
    tensors.made += 1
    for p, state in zip(tensors.params, tensors.states, strict=True):
        if tensors.kinds.taken:
            state["pre_grad"] = p.grad
        p.grad = None
    if tensors.kinds.taken:
        tensors.table.hold_gradients()


def snapshot(tensors):
    """All memory of the tensors, guards included, as copies on the CPU."""
    return {name: arena.memory.cpu().clone() for name, arena in tensors.arenas.items()}


def assert_same(ours, expected, what=""):
    for name, memory in expected.items():
        different = (bits(ours[name]) != bits(memory)).nonzero().flatten()
        if name == "block_sums":  # other lanes are added up first
            # of 256 numbers of either sign, in float32
            close = dict(rtol=1.3e-6, atol=256 * 2.0**-23) if memory.dtype == torch.float32 else {}
            torch.testing.assert_close(ours[name], memory, **close)
            continue
        assert not len(different), f"{what}: {name}, {len(different)} elements from {different[0]}"
