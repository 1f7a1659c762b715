"""Warnings that point at the line of the user's own code."""

import os
import sys
import warnings
from types import FrameType

_BETWEEN = {"adan_optim", "adan", "adam_mini", "torch", "contextlib", "functools", "importlib"}
_STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep


class SlowPathWarning(UserWarning):
    """The fused kernels cannot run on this machine, so a slower path was chosen.

    Given once for each reason, at the first step that is concerned. foreach=True chooses the path without a
    warning; `warnings.simplefilter("ignore", SlowPathWarning)` turns it off everywhere.
    """


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the user's line: the nearest one that is not in this package, torch, or another installed one.

    If all callers are installed packages, it is the line that called this one, through torch's wrappers.
    """
    nearest = sys._getframe()
    while nearest.f_back and _is_between(nearest):
        nearest = nearest.f_back
    frame: FrameType | None = nearest
    while frame and (_is_between(frame) or _is_installed(frame.f_code.co_filename)):
        frame = frame.f_back
    frame = frame or nearest
    module, seen = frame.f_globals.get("__name__", ""), frame.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno, module, seen)


def _is_between(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in _BETWEEN


def _is_installed(file: str) -> bool:
    is_standard = file.startswith((_STANDARD_LIBRARY, "<frozen "))
    return is_standard or "site-packages" in file or "dist-packages" in file
