"""The capability card: the only place where an optimizer says what it supports.

The tables in the docs, the error messages, `adan_optim.available()` and the parametrisation of
the tests are made from the cards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

PATHS = ("fused", "foreach", "reference")  # fastest first: the order in which they are tried

# Bytes of a number of state, by how it is kept; in 8 bits, blocks of 256 share a float32 scale.
STATE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1 + 4 / 256}


def one_pass(state: float, parameter: float = 4) -> float:
    """Return the bytes that a step moves at least: it reads p, g and the states, and writes p and the states.

    Args:
        state: bytes of the states, of a parameter or of a whole model.
        parameter: bytes of that parameter or those parameters, and of the gradient.
    """
    return 3 * parameter + 2 * state


# What every optimizer of this package accepts besides its own hyper-parameters.
COMMON_OPTIONS = {
    "maximize": "ascend instead of descend",
    "caution": "leave out elements whose step has another sign than the gradient, and enlarge the others",
    "state_dtype": "None keeps states in the parameter's dtype; 'float32', 'bfloat16' (stochastic rounding), "
    "'int8' (codes in blocks of 256)",
    "min_int8_size": "with int8, tensors of fewer elements keep float32 states",
    "param_rounding": "of bfloat16 parameters: 'nearest', 'stochastic', or, with 2 more bytes, 'kahan' or "
    "'split' (float32, bit for bit)",
    "capturable": "demand a step that a CUDA graph can capture",
    "max_grad_norm": "clip the global norm of all gradients to this value; 0 is off",
    "process_group": "take the norm over the optimizers of these processes ('world': all), which have other "
    "parameters",
    "nonfinite": "'propagate', 'skip' (leave this step out) or 'raise' when a gradient is inf or NaN",
    "foreach": "True asks for the foreach path, False rules it out",
    "fused": "True asks for the fused path, False rules it out",
}


@dataclass(frozen=True)
class FusedRule:
    """A struct of csrc/rules.h, as Python has to know it.

    Attributes:
        name: that of the struct, in lower case with underscores.
        states: what it takes as states, in order.
        previous: the one that is minus the gradient of the step before, or "".
        factors: whether it takes a factor for each row and column of a tensor.
        sums: how many numbers it adds up.
        moments: the small state of which its kernel makes the factors; "" where the optimizer makes them.
        small: whether parameters and states may be kept in fewer bits than the arithmetic's.
        unread: what it does not read, of "param" and "grad".
        unwritten: what it does not write, of "param", "states" (all of them) and the names of single states.
    """

    name: str
    states: tuple[str, ...]
    previous: str = ""
    factors: bool = False
    sums: int = 0
    moments: str = ""
    small: bool = True
    unread: tuple[str, ...] = ()
    unwritten: tuple[str, ...] = ()

    @property
    def written_states(self) -> tuple[str, ...]:
        """The states that it writes, in order."""
        return tuple(x for x in self.states if not {x, "states"} & set(self.unwritten))


@dataclass(frozen=True)
class Card:
    """What one optimizer is and supports.

    Attributes:
        name: registry name, as in `adan_optim.build_optimizer(model, name)`.
        title: the name people use.
        source: paper and equation, or file.
        when: when to use it, in a line.
        states: state tensors, each of the parameter's shape, with the paper's symbol. In the order in which
            the fused rule takes them.
        optional: those of them that only some options or parameters need.
        small: state tensors of other, smaller shapes; they are float32, or float64 for float64 parameters.
        iterates: those that are points of the parameter's space, as it is itself, and no moments. They are
            never kept in 8 bits: a code is wrong by 3 to 6 %, which for a weight is far more than a step.
        nonnegative: those states that cannot be negative.
        previous: the one that is minus the gradient of the step before, or "".
        betas: number of decay factors in `betas`; 0 where there is no such argument.
        reads: how often the fused path reads p or g besides its one pass over them, for norms and sums.
        state_reads: how often it reads the states besides.
        elementwise: whether an element's update depends on nothing but its own gradient and states. Where it
            does not (norms, means, factors), parameters that are DTensors are updated as wholes.
        options: hyper-parameters of a parameter group, besides lr, betas, eps and weight_decay.
        paths: update paths, fastest first.
        rules: the fused rules, where they are not just the one of the optimizer's name.
        cpu_rules: those that the CPU has instead.
        fused_devices: device types with a fused kernel.
        dtypes: parameter dtypes. Arithmetic is in float32, and in float64 for float64 parameters.
    """

    name: str
    title: str
    source: str
    when: str
    states: dict[str, str]
    betas: int
    optional: tuple[str, ...] = ()
    small: dict[str, str] = field(default_factory=dict)
    iterates: tuple[str, ...] = ()
    nonnegative: tuple[str, ...] = ()
    previous: str = ""
    reads: int = 0
    state_reads: float = 0
    elementwise: bool = True
    options: dict[str, str] = field(default_factory=dict)
    paths: tuple[str, ...] = PATHS
    rules: tuple[FusedRule, ...] = ()
    cpu_rules: tuple[FusedRule, ...] = ()
    fused_devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

    @property
    def fused_rules(self) -> tuple[FusedRule, ...]:
        """The rules of the fused path, if there is one."""
        return self.rules or (FusedRule(self.name, self.fused_states, self.previous),)

    @property
    def cautious_rules(self) -> tuple[FusedRule, ...]:
        """The rules of the fused path with caution, in two passes: of rules that are one pass without it."""
        if self.rules or "fused" not in self.paths:
            return ()
        name, states = self.name, self.fused_states
        unwritten = ("param", "states")
        first = FusedRule(
            f"{name}_agreement", states, sums=1, small=False, unread=("param",), unwritten=unwritten
        )
        return first, FusedRule(f"{name}_cautious", states, factors=True, small=False)

    @property
    def fused_states(self) -> tuple[str, ...]:
        """The states of the fused rule, in its order: options that need further ones take other paths."""
        return tuple(name for name in self.states if name not in self.optional)

    def state_bytes(self, state_dtype: str = "float32") -> float:
        """Bytes of state per parameter, without optional and small states."""
        return self.bytes_of(self.fused_states, state_dtype)

    def bytes_of(self, states: Sequence[str], state_dtype: str) -> float:
        """Bytes per parameter of some of the states."""
        whole = self.iterates if state_dtype == "int8" else ()
        return sum(STATE_BYTES["float32" if name in whole else state_dtype] for name in states)

    def traffic_bytes(self, state_dtype: str = "float32", take_gradients: bool = False) -> float:
        """Bytes that a fused step moves per float32 parameter, without optional and small states.

        A taken gradient is read as it is, 4 bytes, and not written.
        """
        taken = 4 - 2 * STATE_BYTES[state_dtype] if take_gradients else 0
        return self.step_bytes(self.state_bytes(state_dtype)) + taken

    def step_bytes(self, state: float, parameter: float = 4) -> float:
        """Bytes that a fused step moves, given those of states and of parameters; see one_pass."""
        return one_pass(state, parameter) + self.reads * parameter + self.state_reads * state
