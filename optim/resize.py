"""Growing and pruning parameters with their states, as 3D Gaussian splatting does every hundred steps."""

import torch
from torch import Tensor

from .base import Optimizer
from .engine import storage
from .engine.contract import check_state
from .engine.dtensor import is_dtensor
from .engine.storage import State, StateSpec, Storage


@torch.no_grad()
def resize_state(optimizer: Optimizer, old: Tensor, new: Tensor, rows: Tensor) -> None:
    """Replaces a parameter by one with other rows, which takes over the states of the rows it has kept.

    The new parameter takes the old one's place in its group, with its step count::

        keep = torch.nonzero(opacity > 0.005).flatten()                  # prune
        resize_state(optimizer, old, new, keep)                          # new = Parameter(old[keep])

        rows = torch.arange(len(new)); rows[len(old):] = -1              # grow
        resize_state(optimizer, old, new, rows)                          # new = Parameter(cat([old, more]))

    States of new rows are zero, as in the common recipes: the bias correction is that of a parameter of this
    age, so their first steps are short. Adan takes the first gradient of a new row for its first difference.
    8-bit states are decoded and rounded to nearest again, as their blocks hold other rows.

    Args:
        optimizer: which has `old`.
        old: a parameter [rows, ...].
        new: its successor [other rows, ...], of the same dtype, device and other dimensions.
        rows: int64 [other rows], for each row of `new` the row of `old` that it was, or -1 for none.

    Raises:
        ValueError: if `old` is not in the optimizer, or `new` is; if the tensors do not go together; for
            DTensors; for Shampoo, whose factors are made of all rows.
        RuntimeError: for states that cannot be those of the parameters, such as Adam-mini's for blocks that
            are not rows. Whatever the error, nothing is changed.
    """
    place = next(
        ((group, i) for group in optimizer.param_groups for i, p in enumerate(group["params"]) if p is old),
        None,
    )
    if place is None:
        raise ValueError("the old parameter is not one of the optimizer's")
    group, i = place
    _check(optimizer, old, new, rows)
    rows = rows.to(old.device)
    if state := optimizer.state.get(old):
        check_state("the old parameter", optimizer.card, optimizer.state_spec(old, group), old, state)
        longer = torch.empty((len(old) + 1, *old.shape[1:]), dtype=old.dtype, device="meta")
        specs = [optimizer.state_spec(p, group) for p in (old, longer, new)]
        moved = _moved(optimizer, old, new, rows, state, *specs[:2])
        check_state("the new parameter", optimizer.card, specs[2], new, moved)
        storage = Storage.of(new, group, optimizer.take_gradients)
        storage.fit(optimizer.card, specs[2], new, moved, state["step"].device)
        optimizer.state[new] = moved
    optimizer.state.pop(old, None)
    group["params"][i] = new


def _check(optimizer: Optimizer, old: Tensor, new: Tensor, rows: Tensor) -> None:
    if not optimizer.resizable:
        raise ValueError(
            f"{optimizer.card.title}'s states are made of all rows of a parameter, and are not resized"
        )
    if is_dtensor(old) or is_dtensor(new):
        raise ValueError("a DTensor's rows are on several processes, and are not resized")
    if any(p is new for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("the new parameter is in the optimizer already")
    if old.ndim == 0 or new.shape[1:] != old.shape[1:] or new.ndim != old.ndim:
        raise ValueError(
            f"shapes {tuple(old.shape)} and {tuple(new.shape)} may differ in the number of rows only"
        )
    if new.dtype != old.dtype or new.device != old.device:
        raise ValueError(
            f"the new parameter is {new.dtype} on {new.device}, the old one {old.dtype} on {old.device}"
        )
    if rows.shape != new.shape[:1] or rows.dtype != torch.int64:
        raise ValueError(f"rows: int64 [{len(new)}] is needed, not {rows.dtype} {list(rows.shape)}")
    if len(rows) and not (int(rows.min()) >= -1 and int(rows.max()) < len(old)):
        raise ValueError(
            f"rows: -1, or from 0 to {len(old) - 1}; there are {int(rows.min())} to {int(rows.max())}"
        )


def _moved(
    optimizer: Optimizer,
    old: Tensor,
    new: Tensor,
    rows: Tensor,
    state: State,
    before: StateSpec,
    longer: StateSpec,
) -> State:
    """The states of the new parameter, not yet as its storage keeps them.

    `longer` are the states of a parameter with one more row than the old one, which tells those with a number
    a row.
    """
    moved: State = {"step": state["step"].clone()}
    for (name, shape), (_, shape_of_longer) in zip(before.small, longer.small, strict=True):
        moved[name] = state[name].clone() if shape == shape_of_longer else _taken(state[name], rows)
    for name in before.full:
        if name in state:
            moved[name] = _taken(storage.load(state, name, name not in optimizer.card.nonnegative), rows)
    for name in ("pre_grad", "compensation"):
        if name in state:
            moved[name] = _taken(state[name], rows)
    if "pre_grad_scale" in state:
        moved["pre_grad_scale"] = state["pre_grad_scale"].clone()
    return moved


def _taken(x: Tensor, rows: Tensor) -> Tensor:
    """The rows of x; zeros for -1."""
    if not len(x):
        return x.new_zeros((len(rows), *x.shape[1:]))
    taken = x.index_select(0, rows.clamp(min=0))
    taken[rows < 0] = 0
    return taken
