"""Warnings that point at the line of the user's own code."""

import sys
import warnings

_BETWEEN = {"adan_optim", "adan", "adam_mini", "torch", "contextlib", "functools", "importlib"}


class SlowPathWarning(UserWarning):
    """The fused kernels cannot run on this machine, so a slower path was chosen.

    Given once for each reason, at the first step that is concerned. foreach=True chooses the path without a
    warning; `warnings.simplefilter("ignore", SlowPathWarning)` turns it off everywhere.
    """


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called into this package, through torch's wrappers if there are any."""
    frame = sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame = frame.f_back
    module, seen = frame.f_globals.get("__name__", ""), frame.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno, module, seen)
