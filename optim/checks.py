"""Checks of single values."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def number(name: str, value: Any) -> Any:
    """The value, if it is a finite number >= 0 or a tensor of one such number."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} is a tensor of shape {tuple(value.shape)}: give one number")
        plain = value.item()
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r}: give a number >= 0")
    else:
        plain = value
    if not (math.isfinite(plain) and plain >= 0):
        raise ValueError(f"{name}={plain}: must be a finite number >= 0")
    return value


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuses a value that is not among the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: use {', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}")
