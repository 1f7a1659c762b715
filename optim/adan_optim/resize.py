"""Grow and prune parameters together with their states, as 3D Gaussian splatting does regularly."""

import torch
from torch import Tensor

from .base import Optimizer
from .engine import storage
from .engine.contract import check_state
from .engine.dtensor import is_dtensor
from .engine.storage import REST_NAMES, State, StateSpec, Storage


@torch.no_grad()
def resize_state(optimizer: Optimizer, old: Tensor, new: Tensor, rows: Tensor) -> None:
    """Replace a parameter by one with other rows; the rows that it keeps also keep their states.

    The new parameter takes the old one's place in its group, and its step count::

        keep = torch.nonzero(opacity > 0.005).flatten()                  # prune
        resize_state(optimizer, old, new, keep)                          # new = Parameter(old[keep])

        rows = torch.arange(len(new)); rows[len(old):] = -1              # grow
        resize_state(optimizer, old, new, rows)                          # new = Parameter(cat([old, more]))

    States of new rows are zero, as in the common recipes; a state that is a point of the parameter's space
    begins at the row's value. The bias correction is that of the parameter's step count, so their first steps
    are short. Adan uses the first gradient of a new row as its first difference.
    8-bit states are decoded and rounded to nearest again, since their blocks then hold other rows.

    Args:
        optimizer: the optimizer of `old`.
        old: a parameter [rows, ...].
        new: its successor [new rows, ...], of the same dtype, device and other dimensions.
        rows: int64 [new rows], for each row of `new` its row in `old`, or -1 for none.

    Raises:
        ValueError: if `old` is not in the optimizer, or `new` is; if the tensors do not match; for DTensors;
            for Shampoo, because its factors are sums over all rows.
        RuntimeError: for states that do not fit the parameters, such as Adam-mini's for blocks that are not
            rows. After any error, nothing is changed.
    """
    place = next(
        ((group, i) for group in optimizer.param_groups for i, p in enumerate(group["params"]) if p is old),
        None,
    )
    if place is None:
        raise ValueError("the old parameter is not in the optimizer")
    group, i = place
    _check(optimizer, old, new, rows)
    rows = rows.to(old.device)
    if state := optimizer.state.get(old):
        check_state("the old parameter", optimizer.card, optimizer.state_spec(old, group), old, state)
        longer = torch.empty((len(old) + 1, *old.shape[1:]), dtype=old.dtype, device="meta")
        specs = [optimizer.state_spec(p, group) for p in (old, longer, new)]
        moved = _moved(optimizer, rows, state, *specs[:2])
        for name in optimizer.card.iterates:  # a new row begins at its own value
            moved[name][rows < 0] = new.detach()[rows < 0].to(moved[name].dtype)
        check_state("the new parameter", optimizer.card, specs[2], new, moved)
        storage = Storage.of(new, group, optimizer.take_gradients)
        storage.fit(optimizer.card, specs[2], new, moved, state["step"].device)
        optimizer.state[new] = moved
    optimizer.state.pop(old, None)
    group["params"][i] = new


def _check(optimizer: Optimizer, old: Tensor, new: Tensor, rows: Tensor) -> None:
    if not optimizer.resizable:
        raise ValueError(
            f"{optimizer.card.title}'s states depend on all rows of a parameter and cannot be resized"
        )
    if is_dtensor(old) or is_dtensor(new):
        raise ValueError("a DTensor's rows are on several processes and cannot be resized")
    if any(p is new for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("the new parameter is in the optimizer already")
    if old.ndim == 0 or new.shape[1:] != old.shape[1:] or new.ndim != old.ndim:
        raise ValueError(
            f"shapes {tuple(old.shape)} and {tuple(new.shape)} may differ only in the number of rows"
        )
    if new.dtype != old.dtype or new.device != old.device:
        raise ValueError(
            f"the new parameter is {new.dtype} on {new.device}, the old one {old.dtype} on {old.device}"
        )
    if rows.shape != new.shape[:1] or rows.dtype != torch.int64:
        raise ValueError(f"rows: int64 [{len(new)}] is needed, not {rows.dtype} {list(rows.shape)}")
    if len(rows) and not (int(rows.min()) >= -1 and int(rows.max()) < len(old)):
        raise ValueError(f"rows: give -1, or 0 to {len(old) - 1}, not {int(rows.min())} to {int(rows.max())}")


def _moved(optimizer: Optimizer, rows: Tensor, state: State, before: StateSpec, longer: StateSpec) -> State:
    """The states of the new parameter, not yet in the form of its storage.

    `longer` has the states of a parameter with one more row than the old one: they show which small states
    have a number per row.
    """
    moved: State = {"step": state["step"].clone()}
    for (name, shape), (_, shape_of_longer) in zip(before.small, longer.small, strict=True):
        moved[name] = state[name].clone() if shape == shape_of_longer else _taken(state[name], rows)
    for name in before.full:
        if name in state:
            moved[name] = _taken(storage.load(state, name, name not in optimizer.card.nonnegative), rows)
    for name in ("pre_grad", *REST_NAMES):
        if name in state:
            moved[name] = _taken(state[name], rows)
    if "pre_grad_scale" in state:
        moved["pre_grad_scale"] = state["pre_grad_scale"].clone()
    return moved


def _taken(x: Tensor, rows: Tensor) -> Tensor:
    """The rows of x, [rows, ...]; zeros for -1."""
    if not len(x):
        return x.new_zeros((len(rows), *x.shape[1:]))
    taken = x.index_select(0, rows.clamp(min=0))
    taken[rows < 0] = 0
    return taken
