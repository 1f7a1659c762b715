"""Checks of an optimizer's arguments: single values, the constructor, the groups."""

import contextlib
import functools
import inspect
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..card import Card
from ..warn import warn
from .dtensor import is_dtensor
from .plan import path_of
from .rule import Group, UpdateRule
from .storage import ROUNDINGS, STATE_DTYPES
from .words import INSTEAD, nearest

# Options of the whole optimizer; everything else is a hyper-parameter of a group.
OPTIMIZER_WIDE = (
    *("max_grad_norm", "nonfinite", "foreach", "fused", "take_gradients", "capturable"),
    "process_group",
)
_MISSING = object()


# ---- single values


def number(name: str, value: Any) -> Any:
    """Return the value, which must be a finite number >= 0 or a one-element tensor of one.

    numpy's and other numbers become Python's, which a checkpoint can hold and every path accepts.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} is a tensor of shape {tuple(value.shape)}: give one number")
        plain = value.item()
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: give a number >= 0")
    else:
        value = plain = int(value) if isinstance(value, Integral) else float(value)
    if not (math.isfinite(plain) and plain >= 0):
        raise ValueError(f"{name}={plain}: must be a finite number >= 0")
    return value


def plain_number(name: str, value: Any) -> Any:
    """Return the same as a Python number, for values that no scheduler changes in place."""
    value = number(name, value)
    return value.item() if isinstance(value, Tensor) else value


def whole_number(name: str, value: Any, least: int = 1) -> None:
    """Raise ValueError for a value that is not an integer >= least."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: give a whole number >= {least}")


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise ValueError for a value that is not among the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: use {', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}")


def known_options(title: str, given: Iterable[str], accepted: Collection[str]) -> None:
    """Raise TypeError for an option that is not among the accepted ones, with the nearest name."""
    for key in given:
        if key not in accepted:
            near = nearest(key, accepted)
            hint = f"did you mean {near!r}?" if near else INSTEAD.get(key) or f"it has {', '.join(accepted)}"
            raise TypeError(f"{title} has no option {key!r}: {hint}")


# ---- the constructor


def check_switches(optimizer: UpdateRule, differentiable: Any) -> None:
    """Check the options of the whole optimizer, except for the numbers."""
    title = optimizer.card.title
    if differentiable:
        raise ValueError(
            f"differentiable=True: {title} updates its states in place, where autograd cannot follow; "
            "leave it False"
        )
    one_of("nonfinite", optimizer.nonfinite, ("propagate", "skip", "raise"))
    for name in ("foreach", "fused"):
        if getattr(optimizer, name) not in (None, True, False):
            raise TypeError(f"{name}={getattr(optimizer, name)!r}: use None, True or False")
    for name in ("take_gradients", "capturable"):
        if not isinstance(getattr(optimizer, name), bool):
            raise TypeError(f"{name}={getattr(optimizer, name)!r}: use True or False")
    if optimizer.take_gradients and not optimizer.card.previous:
        raise TypeError(f"{title} has no option 'take_gradients': it keeps no previous gradient")
    group = optimizer.process_group
    if group is not None:
        if not (dist.is_available() and (group == "world" or isinstance(group, dist.ProcessGroup))):
            raise TypeError(f"process_group={group!r}: use None, 'world' or a group of torch.distributed")
        if not dist.is_initialized():
            raise ValueError(f"process_group={group!r}: call torch.distributed.init_process_group first")
    if optimizer.capturable and (optimizer.take_gradients or optimizer.nonfinite != "propagate"):
        raise ValueError(
            "capturable=True needs take_gradients=False and nonfinite='propagate': a graph has its "
            "gradients at fixed addresses and cannot ask the host what to do"
        )


def warn_of_lost_squares(optimizer: UpdateRule) -> None:
    """Warn of float16 states that will hold numbers too small for float16; called by the constructor."""
    squares = set(optimizer.card.nonnegative) & set(optimizer.card.states)
    if any(
        p.dtype == torch.float16
        and group["state_dtype"] is None
        and squares.intersection(optimizer.state_spec(p, group).full)
        for group in optimizer.param_groups
        for p in group["params"]
    ):
        warn(
            f"{optimizer.card.title} keeps mean squares of gradients in float16, where those of gradients "
            "below about 1e-3 round to zero and steps become several times too long: use "
            "state_dtype='float32'"
        )


# ---- groups


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Prefix the errors of a check with their subject."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"{where}: {error}") from None


def in_group(optimizer: UpdateRule, index: int) -> contextlib.AbstractContextManager[None]:
    """Prefix the errors of a check with the group."""
    return located(f"{optimizer.card.title}, parameter group {index}")


def check_group(optimizer: UpdateRule, group: Group) -> None:
    """Check a new group: its keys, its hyper-parameters and its parameters."""
    for key in group.keys() - optimizer.defaults.keys() - {"params", "param_names"}:
        if key in OPTIMIZER_WIDE:
            if group[key] == getattr(optimizer, key):  # ZeroRedundancyOptimizer repeats them in the groups
                continue
            raise ValueError(f"{key} is an option of the whole optimizer: give it to the constructor")
        if near := nearest(key, optimizer.defaults, cutoff=0.8):
            raise ValueError(f"unknown key {key!r}: did you mean {near!r}?")
    check_hyper(optimizer, group, optimizer.defaults)
    optimizer.check_options(group)
    for i, p in enumerate(group["params"]):
        name = group["param_names"][i] if "param_names" in group else f"parameter {i}"
        _check_dtype(optimizer.card, name, p, group)
        _check_path(optimizer, name, p, group)


def _check_dtype(card: Card, name: str, p: Tensor, group: Group) -> None:
    if p.is_complex():
        raise ValueError(f"{name} is complex ({p.dtype}): optimize torch.view_as_real of it")
    if p.dtype not in card.dtypes:
        supported = ", ".join(map(str, card.dtypes))
        raise ValueError(f"{name} has dtype {p.dtype}; supported are {supported}")
    if p.dtype == torch.float64 and group["state_dtype"] is not None:
        raise ValueError(
            f"state_dtype={group['state_dtype']!r}: {name} is float64, and so are its states; "
            "leave it None in its group"
        )
    if p.dtype == torch.float16 and group["param_rounding"] != "nearest":
        raise ValueError(f"param_rounding={group['param_rounding']!r} is for bfloat16, and {name} is float16")
    if group["state_dtype"] == "int8" and is_dtensor(p):
        raise ValueError(
            f"state_dtype='int8': {name} is a DTensor, whose shards do not end where blocks do; "
            "use 'bfloat16'"
        )


def _check_path(optimizer: UpdateRule, name: str, p: Tensor, group: Group) -> None:
    card = optimizer.card
    if optimizer.fused and (reason := optimizer.why_not_fused(p, group)):
        raise ValueError(f"fused=True cannot update {name}: {reason}; fused=None picks a path that works")
    if optimizer.capturable and (not p.is_cuda or path_of(optimizer, p, group) != "fused"):
        reason = optimizer.why_not_fused(p, group) or f"it is on {p.device}, or another path was asked for"
        raise ValueError(f"capturable=True needs {name} on the fused CUDA path: {reason}")
    caution = group["caution"]
    if optimizer.capturable and (caution or any(rule.factors or rule.sums for rule in card.fused_rules)):
        title = f"{card.title}{' with caution' * caution}"
        raise ValueError(f"capturable=True: a step of {title} is more than its kernels, and is not captured")


def check_hyper(optimizer: UpdateRule, group: Group, names: Iterable[str]) -> None:
    """Check the hyper-parameters `names` of a group, and make plain numbers of them."""
    defaults = _defaults(type(optimizer))  # type: ignore[arg-type]  # mypy takes the class for an instance
    for name in names:
        if name not in group:
            raise ValueError(f"the group no longer has {name!r}")
        value = group[name]
        if name == "lr":
            group[name] = number(name, value)
        elif name in ("eps", "weight_decay") or isinstance(defaults.get(name), float):
            group[name] = plain_number(name, value)
        elif name == "betas":
            group[name] = betas_of(optimizer.card, value, defaults.get(name))
        elif name == "state_dtype":
            one_of(name, value, (None, *STATE_DTYPES))
        elif name == "param_rounding":
            one_of(name, value, ROUNDINGS)
        elif name == "min_int8_size":
            whole_number(name, value, 0)
        elif isinstance(defaults.get(name), bool) and not isinstance(value, bool):
            raise TypeError(f"{name}={value!r}: use True or False")


@functools.cache
def _defaults(cls: type[UpdateRule]) -> dict[str, Any]:
    """The constructor's defaults, also of options that a user's subclass does not repeat."""
    owner = next(base for base in cls.__mro__ if "card" in vars(base))
    options = [option for c in (cls, owner) for option in inspect.signature(c).parameters.values()]
    return {option.name: option.default for option in options if option.default is not option.empty}


def betas_of(card: Card, betas: Any, default: Any, name: str = "betas") -> tuple[float, ...]:
    """Return decay factors, as many as an optimizer has, as Python's numbers.

    Args:
        card: the optimizer's.
        betas: what was given.
        default: what the option is if nothing is given, for the message; None if there is no such value.
        name: the option's.

    Raises:
        ValueError, TypeError: for anything but so many numbers in [0, 1).
    """
    count, hint = card.betas, f"; the default is {default}" if default else ""
    wanted = f"{count} number{'s' * (count != 1)}"
    if isinstance(betas, str) or not isinstance(betas, Iterable):
        raise TypeError(f"{name}={betas!r}: give {wanted} in [0, 1){hint}")
    values = tuple(float(number(f"{name}[{i}]", beta)) for i, beta in enumerate(betas))
    if len(values) != count:
        raise ValueError(f"{name}={values}: give {wanted}, not {len(values)}{hint}")
    if max(values) >= 1:
        raise ValueError(f"{name}={values}: each must be in [0, 1)")
    return values


def check_capture(optimizer: UpdateRule) -> None:
    """Check that a CUDA graph can capture a step.

    Raises:
        RuntimeError: the optimizer is not capturable, or a parameter has no states yet: those that a capture
            allocates are zeros again at every replay.
    """
    if not optimizer.capturable:
        raise RuntimeError("a CUDA graph is being captured: construct the optimizer with capturable=True")
    groups = optimizer.param_groups
    if any(p.grad is not None and p not in optimizer.state for group in groups for p in group["params"]):
        raise RuntimeError(
            "a CUDA graph is being captured, and a parameter has not made a step yet: make one step before "
            "the capture"
        )


def check_changes(optimizer: UpdateRule, checked: list[list[Any]]) -> list[list[Any]]:
    """Check the hyper-parameters that changed since the previous step, as schedulers change them.

    Args:
        optimizer: the optimizer whose groups are checked.
        checked: what this function returned at the previous step; [] at the first.

    Returns:
        The hyper-parameters of each group.
    """
    names = optimizer.defaults
    now = [[group.get(name, _MISSING) for name in names] for group in optimizer.param_groups]
    if now == checked:
        return checked
    for index, (group, values) in enumerate(zip(optimizer.param_groups, now, strict=True)):
        old = checked[index] if index < len(checked) else [_MISSING] * len(values)
        changed = {name for name, x, y in zip(names, old, values, strict=True) if x is _MISSING or x != y}
        with in_group(optimizer, index):
            check_hyper(optimizer, group, [name for name in names if name in changed])
            if changed & {"betas", *optimizer.card.options}:
                optimizer.check_options(group)
    return [[group[name] for name in names] for group in optimizer.param_groups]
