"""The optimizer's step: bytes moved, seconds, and its share of a training step.

    moved      what a fused step reads and writes in the GPU's memory, by the card (adan_optim.card)
    seconds    moved over the memory's bandwidth: a step does so little with each number that this is its time
    share      of the step in a training step: forward and backward pass at an assumed share of the peak, then
               the step
    offload    with the states in the host's memory: they are sent to the GPU and back by PCIe, in both
               directions at once, while the GPU updates; the longer of the two is the time

FSDP2 shards parameters, gradients and states, so each of n GPUs makes an n-th of the step.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from adan_optim import CARDS, OPTIMIZERS
from adan_optim.card import STATE_BYTES, Card, one_pass
from repro.errors import UserError
from repro.hardware import FAMILIES, GPUS
from repro.planner.plan import Machine
from repro.results import table

FORWARD_AND_BACKWARD = 6  # operations per parameter and token of a language model (arXiv 2001.08361)
SUFFIXES = {"M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Cost:
    """The step on one GPU.

    Attributes:
        moved: bytes read and written in its memory.
        state: bytes of the states that it updates.
    """

    moved: float
    state: float

    def seconds(self, bandwidth: float, pcie: float | None = None) -> float:
        """Return the time of the step.

        Args:
            bandwidth: of the GPU's memory, in bytes per second.
            pcie: bytes per second in each direction if the states are offloaded; None: they are not.
        """
        return max(self.moved / bandwidth, 0 if pcie is None else self.state / pcie)


def cost(parameters: float, state: float, optimizer: str, clipped: bool = False) -> Cost:
    """Return the cost of a step on one GPU.

    Args:
        parameters: bytes of those that it updates.
        state: bytes of their states.
        optimizer: name; one without a card of ours is taken to make one pass.
        clipped: whether the step clips the gradients, whose norm reads them once more.
    """
    card = CARDS.get(optimizer)
    moved = one_pass(state, parameters) if card is None else card.step_bytes(state, parameters)
    return Cost(moved + clipped * parameters, state)


def is_estimated(card: Card, kept: str) -> bool:
    """Tell whether the step takes the fused path, whose bytes the card knows, with such states."""
    small = kept == "float32" or all(rule.small for rule in card.fused_rules)
    return "fused" in card.paths and small


def state_bytes(name: str, kept: str) -> float:
    """Return the state bytes per parameter of a [1024, 1024] matrix, with default options.

    Args:
        name: of an optimizer of ours.
        kept: the dtype of the states: float32, bfloat16 or int8.
    """
    p = torch.nn.Parameter(torch.empty(1024, 1024, device="meta"))
    make: Any = OPTIMIZERS[name]
    optimizer = make([p], foreach=True)
    states = optimizer.state_spec(p, optimizer.param_groups[0])
    small: float = sum(math.prod(shape) for _, shape in states.small) * STATE_BYTES["float32"]
    card: Card = optimizer.card
    return card.bytes_of(states.full, kept) + small / p.numel()


def read_size(text: str) -> float:
    """Return a number of parameters, such as 350M, 8B or 8e9.

    Raises:
        UserError: it is none.
    """
    try:
        size = float(text.rstrip("MBT")) * SUFFIXES.get(text[-1:], 1)
    except ValueError:
        size = math.nan
    if not 1 <= size < math.inf:
        raise UserError(f"--parameters {text}: write a number of parameters as 350M, 8B or 8e9")
    return size


def training_seconds(parameters: float, tokens: float, gpu: str, share: float) -> float:
    """Return the time of the forward and backward pass of a language model over `tokens` tokens on a GPU.

    Args:
        share: of the peak that it reaches.
    """
    return FORWARD_AND_BACKWARD * parameters * tokens / (GPUS[gpu].peak * share)


@dataclass(frozen=True)
class Setting:
    """What a table of steps assumes.

    Attributes:
        tokens: in a training step, on each GPU.
        mfu: share of the peak that forward and backward pass reach; None: the assumed one.
        bandwidth: of a GPU's memory in bytes per second; None: that of the data sheet.
        pcie: bytes per second in each direction; None: that of the data sheet.
    """

    tokens: float = 8192
    mfu: float | None = None
    bandwidth: float | None = None
    pcie: float | None = None


def by_optimizer(
    sizes: list[float], machines: list[Machine], setting: Setting
) -> tuple[str, list[dict[str, Any]]]:
    """Return a Markdown table of the step of every optimizer of ours with all states, and its numbers.

    There is a column for each model of `sizes` parameters, in float32 and sharded by FSDP2, on each machine.
    FSDP2 refuses int8 states, so with these each GPU makes the whole step.
    """
    head = ["optimizer", "states", "moved, B/parameter", "offload: times as long"]
    head += [f"{shown(size)} on {machine}" for size in sizes for machine in machines]
    lines, found = [], []
    for name, card in CARDS.items():
        for kept in (kept for kept in STATE_BYTES if is_estimated(card, kept)):
            state = state_bytes(name, kept)
            cells, slower = [], set()
            for size, machine in ((size, machine) for size in sizes for machine in machines):
                assert machine.gpu is not None
                gpu, mine = GPUS[machine.gpu], size / (1 if kept == "int8" else machine.count)
                step = cost(4 * mine, state * mine, name)
                bandwidth, pcie = setting.bandwidth or gpu.bandwidth, setting.pcie or gpu.pcie
                mfu = setting.mfu or FAMILIES["language model"]
                seconds, offloaded = step.seconds(bandwidth), step.seconds(bandwidth, pcie)
                others = training_seconds(size, setting.tokens, machine.gpu, mfu)
                share = seconds / (seconds + others)
                slower.add(f"{offloaded / seconds:.3g}")
                cells.append(f"{step.moved / 1e9:.3g} GB, {1e3 * seconds:.3g} ms, {share:.2%}")
                found.append(
                    {"optimizer": name, "states": kept, "parameters": size, "machine": str(machine)}
                    | {"moved": step.moved, "seconds": seconds, "share": share, "offloaded": offloaded}
                )
            moved = cost(4, state, name).moved
            lines.append([card.title, kept, f"{moved:.4g}", ", ".join(sorted(slower)), *cells])
    return table(head, lines), found


def shown(size: float) -> str:
    """Return a number of parameters as text: 350M, 8B."""
    return next(f"{size / unit:.3g}{suffix}" for suffix, unit in reversed(SUFFIXES.items()) if size >= unit)
