"""The reference and the foreach path: a batch of tensors updated by the Python versions of the rule.

A rule works on float32 or float64 tensors; parameters and states of other dtypes are converted before and
after.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import storage
from .dtensor import as_copy_for, as_part_of, is_dtensor
from .rule import Batch, UpdateRule
from .storage import States, Tensors


@torch.no_grad()
def step(optimizer: UpdateRule, batch: Batch, factor: float, scale: Tensor | None) -> None:
    """Make a step on a batch; the gradients are multiplied by factor and scale, which has one element."""
    card, states = optimizer.card, batch.states
    for state in states:
        state["step"] += 1
    t = [state["step"].item() for state in states]
    p = batch.storage.load_params(batch.params, states)
    work = p[0].dtype
    g = [x.to(work) for x in batch.grads]
    by: Any = factor if scale is None else factor * scale.to(p[0].device, work)
    if scale is not None or factor != 1:
        g = list(torch._foreach_mul(g, by))
    values = _load_states(optimizer, batch, work)
    _update(optimizer, batch, p, g, values, t)
    small = batch.storage.state in ("bfloat16", "int8")
    noisy = small or batch.storage.rounding == "stochastic"
    for i, (x, state) in enumerate(zip(batch.params, states, strict=True)):
        words = storage.noise(int(t[i]), x.numel(), x.device) if noisy else None
        for slot, name in enumerate(batch.spec.full):
            if batch.storage.taken and name == card.previous:
                state["pre_grad_scale"].fill_(by)
            else:
                signed = name not in card.nonnegative
                storage.store(state, name, slot, values[name][i], signed, words if small else None)
        batch.storage.store_param(x, p[i], state, words)


def _load_states(optimizer: UpdateRule, batch: Batch, work: torch.dtype) -> States:
    """The states by name, one for each parameter; those of the parameter's shape in the dtype `work`."""
    card, states = optimizer.card, batch.states
    values = {}
    for name in batch.spec.full:
        if batch.storage.taken and name == card.previous:
            values[name] = [-s["pre_grad_scale"].to(work) * s["pre_grad"].to(work) for s in states]
        else:
            values[name] = [storage.load(s, name, name not in card.nonnegative).to(work) for s in states]
    for name, _ in batch.spec.small:
        values[name] = [state[name] for state in states]
    return values


def _update(
    optimizer: UpdateRule, batch: Batch, p: Tensors, g: Tensors, values: States, t: list[float]
) -> None:
    """Apply the rule; one for whole tensors gets the DTensors of parameters that are DTensors."""
    owner = batch.owners[0][0]
    if is_dtensor(owner) and not optimizer.is_elementwise(owner, batch.group):
        owners = [owner for owner, _ in batch.owners]
        p, g = _placed(as_part_of, owners, p), _placed(as_part_of, owners, g)
        values = {
            name: _placed(as_part_of if name in batch.spec.full else as_copy_for, owners, value)
            for name, value in values.items()
        }
    if batch.path == "foreach":
        optimizer.multi_tensor(p, g, values, t, batch.group)
        return
    for i in range(len(p)):
        state = {name: value[i] for name, value in values.items()}
        optimizer.single_tensor(p[i], g[i], state, t[i], batch.group)


def _placed(as_dtensor: Callable[[Tensor, Tensor], Tensor], owners: Tensors, x: Tensors) -> Tensors:
    return [as_dtensor(owner, part) for owner, part in zip(owners, x, strict=True)]
