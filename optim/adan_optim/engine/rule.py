"""The interface between the engine and an optimizer's update rule.

An optimizer has a card, hyper-parameters and three versions of its update rule: `single_tensor` (the
definition, one tensor at a time), `multi_tensor` (lists of tensors) and, in csrc/rules.h, the fused rule with
the numbers of `fused_hyper`. A rule gets float32 (or float64) tensors to work on; how they are stored is not
its concern. Rules that need more than an element's own values (norms, means) get whole parameters: of a
DTensor, the DTensor itself rather than the local shard.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..card import Card, FusedRule
from . import available, native
from .contract import check_state
from .dtensor import Sharded
from .storage import State, States, StateSpec, Storage, Tensors
from .sums import Sums

Group = dict[str, Any]


@dataclass
class Batch:
    """Tensors that one path updates together: one group, one device, one dtype, one kind of storage.

    `owners` are the user's parameters and their states. `params`, `grads` and `states` are their local
    tensors: a gradient and a full state have their parameter's shape.
    """

    group: Group
    path: str
    storage: Storage
    spec: StateSpec
    owners: list[tuple[Tensor, State]] = field(default_factory=list)
    params: Tensors = field(default_factory=list)
    grads: Tensors = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    sharded: list[Sharded] = field(default_factory=list)  # of DTensors: the owners, for the next steps
    table: native.Table | None = None
    factors: list[native.Factors] = field(default_factory=list)
    first: native.Table | None = None  # the first of two passes
    block_sums: Tensor | None = None  # [blocks of all parameters, sums], from the first or only pass
    block_counts: list[int] = field(default_factory=list)  # how many of the blocks each parameter has
    # what `fill_factors` makes only once
    constants: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)

    @property
    def work(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        return torch.promote_types(self.params[0].dtype, torch.float32)


class UpdateRule(torch.optim.Optimizer):
    """What the engine needs from an optimizer; subclasses of `adan_optim.base.Optimizer` implement it."""

    card: ClassVar[Card]
    decoupled: ClassVar[bool] = True  # weight decay shrinks the parameter instead of entering the gradient
    independent: ClassVar[bool] = True  # whether the step of a parameter does not depend on the others
    batches_dtensors: ClassVar[bool] = False  # whether multi_tensor takes whole parameters that are DTensors
    # The first numbers of `fused_hyper`, keys of a group, which CUDA kernels read on the device if they can.
    device_numbers: ClassVar[tuple[str, ...]] = ("lr",)
    max_grad_norm: float
    nonfinite: str
    foreach: bool | None
    fused: bool | None
    take_gradients: bool
    capturable: bool
    process_group: Any

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        """Update the parameter p and its state in place from the gradient g at step t = 1, 2, ...

        p, g and full states have one shape, any; small states have those of `state_spec`.
        """
        raise NotImplementedError

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        """Do the same for lists with one tensor per parameter, of any shapes; g must not be changed."""
        raise NotImplementedError

    def state_spec(self, p: Tensor, group: Group) -> StateSpec:
        """Return the names and shapes of the states of a parameter of any shape."""
        return StateSpec(tuple(self.card.states))

    def is_elementwise(self, p: Tensor, group: Group) -> bool:
        """Return whether an element of p, of any shape, depends on its own numbers alone; see `Card`."""
        return bool(self.card.elementwise and not group["caution"])

    def prepare_state(self, p: Tensor, state: State, group: Group) -> None:
        """Add the states of a parameter, any shape, that are missing and do not begin as zeros."""

    def finish_step(self, batches: list[Batch], idle: Tensors) -> None:
        """Do what is left when all batches have made a step; `idle` are parameters without a gradient."""

    # ---- checks

    def check_options(self, group: Group) -> None:
        """Raise ValueError or TypeError for invalid options, besides those that all optimizers have."""

    def check_state(self, where: str, p: Tensor, state: State, group: Group) -> None:
        """Check the states of a parameter of any shape before a step; messages call it `where`.

        Raises:
            RuntimeError, ValueError: if they do not belong to this parameter.
        """
        hint = ": to change a parameter's shape use adan_optim.resize_state, or remove its state"
        check_state(where, self.card, self.state_spec(p, group), p, state, hint)

    def check_saved_state(self, where: str, p: Tensor, state: dict[str, Any], spec: StateSpec) -> None:
        """Refuse a saved state with a better message than that of the general checks, which come next."""

    def check_saved_group(self, group: Group) -> None:
        """Refuse a saved group of another implementation whose options mean something else there."""

    def load_foreign_state(self, state: dict[str, Any]) -> None:
        """Convert, in place, a parameter's state from another implementation or version that is known."""

    # ---- the fused path

    def why_not_fused(self, p: Tensor, group: Group) -> str:
        """Return why no fused kernel can update a parameter, of any shape, in this group; "" if one can."""
        storage = Storage.of(p, group, self.take_gradients)
        return available.why_not_fused(self.card, p, storage, group["caution"])

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        """Return the numbers of the fused rule's Hyper struct (csrc/rules.h), in its order."""
        raise NotImplementedError

    def fused_rules(self, spec: StateSpec) -> tuple[FusedRule, ...]:
        """Return the rule of the fused path for parameters with these states, or the rules of two passes."""
        return self.card.fused_rules

    def cpu_rules(self, spec: StateSpec) -> tuple[FusedRule, ...]:
        """Return the same for parameters on the CPU."""
        return self.card.cpu_rules or self.fused_rules(spec)

    def make_factors(self, batch: Batch) -> list[native.Factors]:
        """Allocate the factors of a batch's parameters, for a rule with factors; here, one for each."""
        x = batch.params[0].new_empty(len(batch.params), dtype=batch.work)
        batch.constants["factors"] = x
        return [native.Factors(x[i : i + 1], None, p.numel()) for i, p in enumerate(batch.params)]

    def fill_factors(self, batch: Batch, grads: Tensors, scale: float | Tensor) -> None:
        """Compute `batch.factors` for the next step, without waiting for a GPU, unless the kernel does.

        A rule in two passes computes them from `batch.block_sums`, between the passes. Step counts are those
        before the step, or after the first of two passes.

        Args:
            batch: the parameters and their factors.
            grads: the gradients, of the parameters' shapes.
            scale: the factor on the gradients, a number or a one-element tensor.
        """
        raise NotImplementedError
