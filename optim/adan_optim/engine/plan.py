"""The plan of a step: the path of each parameter, and the batches that are updated together.

A plan of fused batches is reused by the following steps while `Plan.holds`; other paths are planned for every
step.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import fused, native
from .available import warn_of_slow_path, why_no_kernels
from .contract import overlapping, why_not_plain
from .dtensor import Sharded, alike, is_dtensor, local
from .layout import is_plain, same_layout
from .rule import Batch, Group, UpdateRule
from .storage import STORAGE_OPTIONS, State, Storage
from .taken import takeable


class Row(NamedTuple):
    """A parameter that has a gradient: its batch, and the local tensors, of any shape, to work on."""

    key: tuple[Any, ...]
    batch: Batch
    owner: tuple[Tensor, State]
    p: Tensor
    g: Tensor
    state: State
    is_lasting: bool  # the gradient is p.grad itself, so the next step finds the next one there


@dataclass
class Plan:
    """The batches of a step, and what must stay unchanged for the next step to reuse them."""

    batches: list[Batch]
    groups: list[tuple[Group, native.Members, list[Any]]]  # the groups, their parameters, and their options
    idle: list[Tensor]  # parameters without a gradient
    states: native.Members  # all state dicts of the optimizer
    is_lasting: bool  # whether the next step may reuse the plan if it holds
    on_device: bool  # whether the whole step stays on the device

    def holds(self, optimizer: UpdateRule) -> bool:
        """Read the new gradients; return False if a tensor moved or other parameters have gradients."""
        return (
            len(self.groups) == len(optimizer.param_groups)
            and all(
                old is new and params.unchanged(new["params"]) and options == _options(optimizer, new)
                for (old, params, options), new in zip(self.groups, optimizer.param_groups, strict=True)
            )
            and all(p.grad is None for p in self.idle)
            and self.states.unchanged(optimizer.state)
            and all(map(_holds, self.batches))
        )


def _holds(batch: Batch) -> bool:
    """Read the new gradients of a fused batch; return False if one of its tensors changed."""
    grads = [sharded.gradient() for sharded in batch.sharded if sharded.unchanged()]
    given = [g for g in grads if g is not None]
    return len(given) == len(batch.sharded) and all(
        table.refresh(given) for table in (batch.table, batch.first) if table is not None
    )


def _options(optimizer: UpdateRule, group: Group) -> list[Any]:
    """The values of a group's options that may affect states and paths."""
    return [group.get(name) for name in (*optimizer.card.options, "caution", *STORAGE_OPTIONS)]


def path_of(optimizer: UpdateRule, p: Tensor, group: Group) -> str:
    """Return the path of a parameter of any shape: the fastest that is allowed and works.

    Raises:
        RuntimeError: with fused=True, if the fused path cannot update it.
    """
    if optimizer.fused or (optimizer.fused is None and optimizer.foreach is None):
        reason = optimizer.why_not_fused(p, group)
        if not reason:
            return "fused"
        if optimizer.fused:
            raise RuntimeError(f"{optimizer.card.title}(fused=True) cannot continue: {reason}")
    in_batches = optimizer.batches_dtensors and not group["caution"]
    whole = is_dtensor(p) and not (optimizer.is_elementwise(p, group) or in_batches)
    foreign = optimizer.foreach is None and not is_plain(local(p))
    is_single = optimizer.foreach is False or whole or foreign or "foreach" not in optimizer.card.paths
    return "reference" if is_single else "foreach"


@torch.no_grad()
def collect(optimizer: UpdateRule) -> Plan:
    """Sort the parameters that have a gradient into batches, and allocate missing states.

    Raises:
        RuntimeError: for a gradient or a state that does not fit its parameter.
    """
    rows, idle = [], []
    for index, group in enumerate(optimizer.param_groups):
        for place, p in enumerate(group["params"]):
            if p.grad is None:
                idle.append(p)
            else:
                rows.append(_row(optimizer, index, place, p, p.grad))
    rows = _apart(rows)
    by_key: dict[tuple[Any, ...], Batch] = {}
    for row in rows:
        batch = by_key.setdefault(row.key, row.batch)
        batch.owners.append(row.owner)
        batch.params.append(row.p)
        batch.grads.append(row.g)
        batch.states.append(row.state)
        if is_dtensor(row.owner[0]):
            batch.sharded.append(Sharded(*row.owner))
    batches = list(by_key.values())
    for batch in batches:
        if batch.path == "fused":
            fused.make_tables(optimizer, batch)
        elif optimizer.fused is None and optimizer.foreach is None:
            device = batch.params[0].device
            if reason := why_no_kernels(optimizer.card, device):
                warn_of_slow_path(optimizer.card.title, device, reason)
    is_lasting = all(row.is_lasting for row in rows) and all(batch.table for batch in batches)
    if is_lasting:
        for batch in batches:
            batch.grads = []  # references here would keep them alive after zero_grad()
    groups = [
        (group, native.Members(group["params"]), _options(optimizer, group))
        for group in optimizer.param_groups
    ]
    on_device = all(map(fused.stays_on_device, batches))
    return Plan(batches, groups, idle, native.Members(optimizer.state), is_lasting, on_device)


def _row(optimizer: UpdateRule, index: int, place: int, p: Tensor, g: Tensor) -> Row:
    """The row of a parameter, with its gradient and states in the form that its path takes."""
    group = optimizer.param_groups[index]
    where = f"parameter {group['param_names'][place] if 'param_names' in group else place} of group {index}"
    _check_gradient(where, optimizer.card.title, p, g)
    path, g = _path_and_gradient(optimizer, p, g, group)
    storage = Storage.of(p, group, optimizer.take_gradients)
    is_lasting = g is p.grad
    if storage.taken:
        own = takeable(p, g)
        is_lasting = is_lasting and own is p.grad and not is_dtensor(p)
        p.grad = g = own
    spec, state = optimizer.state_spec(p, group), optimizer.state[p]
    optimizer.check_state(where, p, state, group)
    optimizer.prepare_state(p, state, group)
    storage.fit(optimizer.card, spec, p, state, p.device if path == "fused" else "cpu")
    storage.fit_rest(optimizer.card, p, state)
    batch = Batch(group, path, storage, spec)
    kind = (p.device, p.dtype, is_dtensor(p), storage, spec.full)
    key = (index, path, *kind, *(name for name, _ in spec.small))
    owner = (p, state)
    if is_dtensor(p):
        p, g, state = local(p), local(g), {name: local(x) for name, x in state.items()}
    return Row(key, batch, owner, p, g, state, is_lasting)


def _check_gradient(where: str, title: str, p: Tensor, g: Tensor) -> None:
    if g.layout != torch.strided:
        raise RuntimeError(
            f"{title} does not support sparse gradients (parameter of shape "
            f"{tuple(p.shape)}): use sparse=False in the layer, or torch.optim.SparseAdam for it"
        )
    if g.shape != p.shape or g.device != p.device or is_dtensor(g) != is_dtensor(p):
        raise RuntimeError(
            f"{where} is {tuple(p.shape)} on {p.device}, and its gradient {tuple(g.shape)} on {g.device}"
            f"{' (one of them a DTensor)' if is_dtensor(g) != is_dtensor(p) else ''}: call zero_grad() "
            "after replacing a parameter's data"
        )


def _path_and_gradient(optimizer: UpdateRule, p: Tensor, g: Tensor, group: Group) -> tuple[str, Tensor]:
    """The path of a parameter with this gradient, and the gradient in the form that the path takes."""
    path = path_of(optimizer, p, group)
    if path == "fused" and g.dtype != p.dtype:
        if optimizer.fused:
            raise RuntimeError(f"fused=True: a gradient is {g.dtype}, its parameter {p.dtype}")
        path = "foreach"
    if is_dtensor(g) and not alike(p, g):
        g = g.redistribute(p.device_mesh, p.placements)  # type: ignore[attr-defined]
    if path == "fused":
        if not is_plain(local(g)):
            path = "reference"
        elif not same_layout(local(g), local(p)) or why_not_plain(local(g)):
            g = torch.empty_like(p).copy_(g)
    return path, g


def _apart(rows: list[Row]) -> list[Row]:
    """The rows, with those that share memory moved to the reference path and batches of their own."""
    plain = [i for i, row in enumerate(rows) if is_plain(row.p)]
    written = [[rows[i].p] for i in plain]
    for tensors, i in zip(written, plain, strict=True):
        if rows[i].batch.path == "fused":
            tensors += [
                x for name, x in rows[i].state.items() if name in rows[i].batch.spec.full or name == "step"
            ]
    for at in overlapping(written):
        i = plain[at]
        batch = replace(rows[i].batch, path="reference")
        rows[i] = rows[i]._replace(key=(*rows[i].key, i), batch=batch)
    return rows
