"""Checks of single values."""

import difflib
import math
from collections.abc import Collection, Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from torch import Tensor


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
