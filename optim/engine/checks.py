"""Checks of the arguments of an optimizer: single values, its constructor, its groups."""

import contextlib
import difflib
import functools
import inspect
import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..card import Card
from .dtensor import is_dtensor
from .plan import path_of
from .rule import Group, UpdateRule
from .storage import ROUNDINGS, STATE_DTYPES

# Options of the whole optimizer; everything else is a hyper-parameter of a group.
OPTIMIZER_WIDE = ("max_grad_norm", "nonfinite", "foreach", "fused", "take_gradients", "capturable")
_MISSING = object()


# ---- single values


def number(name: str, value: Any) -> Any:
    """The value, if it is a finite number >= 0 or a tensor of one such number.

    Numbers of numpy and the like become Python's, which a checkpoint can hold and every path computes with.
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
    """The same as a Python number, for what no scheduler changes in place."""
    value = number(name, value)
    return value.item() if isinstance(value, Tensor) else value


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuses a value that is not among the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: use {', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}")


def known_options(title: str, given: Iterable[str], accepted: Collection[str]) -> None:
    """Refuses an option that is not among the accepted ones, and names the nearest."""
    for key in given:
        if key not in accepted:
            near = difflib.get_close_matches(key, accepted, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(accepted)}"
            raise TypeError(f"{title} has no option {key!r}: {hint}")


# ---- the constructor


def check_switches(
    card: Card,
    *,
    foreach: Any,
    fused: Any,
    take_gradients: Any,
    nonfinite: Any,
    capturable: Any,
    differentiable: Any,
) -> None:
    """Checks the options of the whole optimizer, besides the numbers."""
    if differentiable:
        raise ValueError(
            f"differentiable=True: {card.title} updates its states in place, where autograd cannot "
            "follow; leave it False"
        )
    one_of("nonfinite", nonfinite, ("propagate", "skip", "raise"))
    for name, flag in {"foreach": foreach, "fused": fused}.items():
        if flag not in (None, True, False):
            raise TypeError(f"{name}={flag!r}: use None, True or False")
    for name, flag in {"take_gradients": take_gradients, "capturable": capturable}.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name}={flag!r}: use True or False")
    if take_gradients and not card.previous:
        raise TypeError(f"{card.title} has no option 'take_gradients': it keeps no previous gradient")
    if capturable and (take_gradients or nonfinite != "propagate"):
        raise ValueError(
            "capturable=True needs take_gradients=False and nonfinite='propagate': a graph has its "
            "gradients at fixed addresses and cannot ask the host what to do"
        )


def warn_of_lost_squares(optimizer: UpdateRule) -> None:
    """Warns of float16 states whose numbers are too small for that type; for the constructor."""
    squares = set(optimizer.card.nonnegative) & set(optimizer.card.states)
    if any(
        p.dtype == torch.float16
        and group["state_dtype"] is None
        and squares.intersection(optimizer.state_spec(p, group).full)
        for group in optimizer.param_groups
        for p in group["params"]
    ):
        warnings.warn(
            f"{optimizer.card.title} keeps mean squares of gradients in float16, where those of gradients "
            "below about 1e-3 round to zero and steps become several times too long: use "
            "state_dtype='float32'",
            stacklevel=4,
        )


# ---- groups


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Says in an error of a check what it is about."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"{where}: {error}") from None


def in_group(optimizer: UpdateRule, index: int) -> contextlib.AbstractContextManager[None]:
    """Says in an error of a check which group it is about."""
    return located(f"{optimizer.card.title}, parameter group {index}")


def check_group(optimizer: UpdateRule, group: Group) -> None:
    """Checks a new group: its keys, its hyper-parameters and its parameters."""
    for key in group.keys() - optimizer.defaults.keys() - {"params", "param_names"}:
        if key in OPTIMIZER_WIDE:
            if group[key] == getattr(optimizer, key):  # ZeroRedundancyOptimizer repeats them in the groups
                continue
            raise ValueError(f"{key} is an option of the whole optimizer: give it to the constructor")
        if near := difflib.get_close_matches(key, optimizer.defaults, n=1, cutoff=0.8):
            raise ValueError(f"unknown key {key!r}: did you mean {near[0]!r}?")
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
    if optimizer.capturable and (p.device.type != "cuda" or path_of(optimizer, p, group) != "fused"):
        reason = optimizer.why_not_fused(p, group) or f"it is on {p.device}, or another path was asked for"
        raise ValueError(f"capturable=True needs {name} on the fused CUDA path: {reason}")
    if optimizer.capturable and any(rule.factors for rule in card.fused_rules):
        raise ValueError(
            f"capturable=True: a step of {card.title} is more than its kernels, and is not captured"
        )


def check_hyper(optimizer: UpdateRule, group: Group, names: Iterable[str]) -> None:
    """Checks hyper-parameters of a group; `names` are those that are new, of `defaults`."""
    flags = _flags(type(optimizer))  # type: ignore[arg-type]  # mypy takes the class for an instance
    for name in names:
        if name not in group:
            raise ValueError(f"the group has no {name!r} any more")
        value = group[name]
        if name in ("lr", "eps", "weight_decay"):
            group[name] = (number if name == "lr" else plain_number)(name, value)
        elif name == "betas":
            group[name] = _betas(optimizer.card, value)
        elif name == "state_dtype":
            one_of(name, value, (None, *STATE_DTYPES))
        elif name == "param_rounding":
            one_of(name, value, ROUNDINGS)
        elif name == "min_int8_size":
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}={value!r}: give a number of elements >= 0")
        elif name in flags and not isinstance(value, bool):
            raise TypeError(f"{name}={value!r}: use True or False")


@functools.cache
def _flags(cls: type[UpdateRule]) -> frozenset[str]:
    """The options that are True or False."""
    parameters = inspect.signature(cls).parameters.items()
    return frozenset(name for name, option in parameters if isinstance(option.default, bool))


def _betas(card: Card, betas: Any) -> tuple[float, ...]:
    count = card.betas
    if isinstance(betas, str) or not isinstance(betas, Iterable):
        raise TypeError(f"betas={betas!r}: give {count} numbers in [0, 1)")
    values = tuple(float(number(f"betas[{i}]", beta)) for i, beta in enumerate(betas))
    if len(values) != count:
        raise ValueError(f"betas={values}: give {count} numbers, not {len(values)}")
    if max(values) >= 1:
        raise ValueError(f"betas={values}: each must be in [0, 1)")
    return values


def check_changes(optimizer: UpdateRule, checked: list[list[Any]]) -> list[list[Any]]:
    """Checks the hyper-parameters that changed since the step before, as schedulers change them.

    Args:
        optimizer: its groups are checked.
        checked: what this function returned at the step before; [] at first.

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
