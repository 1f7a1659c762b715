"""What an optimizer gives to the engine, and what the engine hands over to its update rule.

An optimizer adds its card, its hyper-parameters and its update rule three times over: `single_tensor` (the
definition, one tensor at a time), `multi_tensor` (lists of tensors) and, in csrc/rules.h, the fused rule with
`fused_hyper` numbers. A rule is given float32 (or float64) tensors to work on; how they are stored is not its
concern. Rules that need more than an element's own values (norms, means) are given whole parameters, also
where a parameter is a DTensor: their operations are then those of DTensors.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..card import Card, FusedRule
from . import available, native
from .contract import check_state
from .storage import State, StateSpec, Storage

Group = dict[str, Any]


@dataclass
class Batch:
    """Tensors that one path updates together: one group, one device, one dtype, stored alike.

    `owners` are the parameters as the user knows them and their states; params, grads and states are what
    this process holds of them.
    """

    group: Group
    path: str
    storage: Storage
    spec: StateSpec
    owners: list[tuple[Tensor, State]] = field(default_factory=list)
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    table: native.Table | None = None
    factors: list[native.Factors] = field(default_factory=list)
    first: native.Table | None = None  # of a rule in two passes
    block_sums: list[Tensor] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)  # of `fill_factors`, made once


class UpdateRule(torch.optim.Optimizer):
    """What the engine knows of an optimizer; subclasses of `optim.base.Optimizer` fill it in."""

    card: ClassVar[Card]
    decoupled: ClassVar[bool] = True  # weight decay shrinks the parameter; else it is added to the gradient
    max_grad_norm: float
    nonfinite: str
    foreach: bool | None
    fused: bool | None
    take_gradients: bool
    capturable: bool

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        """Updates the parameter p and its state in place from the gradient g at step t = 1, 2, ..."""
        raise NotImplementedError

    def multi_tensor(
        self, p: list[Tensor], g: list[Tensor], state: dict[str, list[Tensor]], t: list[float], group: Group
    ) -> None:
        """The same for lists of tensors, of which g must not be changed."""
        raise NotImplementedError

    def state_spec(self, p: Tensor, group: Group) -> StateSpec:
        """The states of a parameter."""
        return StateSpec(tuple(self.card.states))

    # ---- checks

    def check_options(self, group: Group) -> None:
        """Refuses options of a group, besides those that all optimizers have, that make no sense."""

    def check_state(self, where: str, p: Tensor, state: State, group: Group) -> None:
        """Checks the states of a parameter before a step; `where` is what messages call it.

        Raises:
            RuntimeError, ValueError: they are not those of this parameter.
        """
        check_state(where, self.card, self.state_spec(p, group), p, state)

    def check_saved_state(self, where: str, p: Tensor, state: dict[str, Any], spec: StateSpec) -> None:
        """Refuses a saved state with a message that the general checks, which come next, cannot give."""

    def load_foreign_state(self, state: dict[str, Any]) -> None:
        """Turns a parameter's state of another implementation or version, if it is known, into ours."""

    # ---- the fused path

    def why_not_fused(self, p: Tensor, group: Group) -> str:
        """Why no fused kernel can update a parameter with the options of its group; empty if one can."""
        return available.why_not_fused(self.card, p, Storage.of(p, group, self.take_gradients))

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        """The numbers of the fused rule's Hyper struct (csrc/rules.h), in its order."""
        raise NotImplementedError

    def fused_rules(self, spec: StateSpec) -> tuple[FusedRule, ...]:
        """The rule of the fused path for parameters with these states; or two, for its passes."""
        return self.card.fused_rules

    def make_factors(self, p: Tensor, group: Group) -> native.Factors:
        """Memory for the factors of a parameter, where the fused rule takes them."""
        raise NotImplementedError

    def fill_factors(self, batch: Batch, grads: list[Tensor], scale: float | Tensor) -> None:
        """Computes `batch.factors` for the next step; scale is the factor on the gradients.

        For a rule in two passes, called between them, when `batch.block_sums` are there. Step counts are
        those before the step, or after the first of two passes. On a GPU nothing may wait for the device.
        """
        raise NotImplementedError
