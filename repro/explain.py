"""Explain errors of the input in one line: ours and those of Hydra, OmegaConf, torch and the system."""

import difflib
import errno
import re
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from repro.errors import UserError
from repro.reading import printable
from repro.train import slurm
from repro.train.renamed import RENAMED


def explain(error: BaseException) -> str | None:
    """Return one line that tells a user what is wrong with the input, or None for a bug in our code.

    Control characters in quoted names and files are escaped.
    """
    line = _explanation(error)
    return None if line is None else printable(line)


def _explanation(error: BaseException) -> str | None:
    if isinstance(error, UserError):
        text = str(error)
        if not text.startswith("Caught "):
            return text
        # a DataLoader worker puts its traceback before the message, and the class before the last line
        return text.splitlines()[-1].removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        if group == "hydra/launcher" and name in slurm.LAUNCHERS:
            return f"{group}={name}: is not installed; run pip install '.[slurm]'"
        options = [option for option in error.options if not option.startswith("_")]  # without shared files
        return f"{group}={name}: no such option; {_nearest(name, options)}"
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}' on the command line: overrides are written key=value"
    if isinstance(error, HydraException):
        return _composition(error)
    if isinstance(error, OmegaConfBaseException):
        first = str(error.msg or error).splitlines()[0]
        # prefer the message of a resolver
        first = first.partition(" raised while resolving interpolation: ")[2] or first
        if "not in struct" in first or "not in '" in first:
            if new := RENAMED.get(str(error.full_key)):
                return f"{error.full_key}: was renamed; use {new}"
            keys = [str(key) for key in error.parent_node] if error.parent_node is not None else []
            return f"{error.full_key}: no such key; {_nearest(str(error.key), keys)}"
        return f"{error.full_key}: {first}" if error.full_key else first
    if (lost := _lost_process(error)) is not None:
        return lost
    if slurm.is_refusal(error):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error}; make room and run the same command again"
    return None


def _composition(error: HydraException) -> str | None:
    """Return why Hydra could not compose a configuration."""
    if isinstance(error.__cause__, OmegaConfBaseException):
        return explain(error.__cause__)
    text = " ".join(str(error).split())
    if several := re.match(r"Ambiguous value for argument '([^']*)'", text):
        return f"{several[1]}: a run for each of several values needs -m; a list is written key=[a,b]"
    if misfit := re.match(r"In '(\w+)/([^']+)': .* Key '(\w+)' not in '.* full_key: (\S+)", text):
        return f"{misfit[1]}={misfit[2]}: is for other recipes; this one has no {misfit[4]}"
    return text


def _lost_process(error: BaseException) -> str | None:
    """Return which other process was lost, for errors of processes that waited for it."""
    text = " ".join(str(error).split())
    if isinstance(error, BrokenProcessPool):
        return "one of the processes that share the work was killed, often for lack of memory; start fewer"
    if not isinstance(error, RuntimeError):
        return None
    if worker := re.search(r"DataLoader worker \((pid[^)]*\)?[^)]*)\) (?:is|exited)[^.]*", text):
        return f"{worker[0]}, often for lack of memory: set a lower workers=N; the same command continues"
    from torch.distributed import DistError

    ended = re.search(r"Connection (closed|reset) by peer|Broken pipe|Timed out waiting|timed out", text)
    if isinstance(error, DistError) or ("gloo" in text and ended):
        reason = ended[0] if ended else text[:150]
        return (
            f"another process of this run ended, or did not answer within run.timeout ({reason}); "
            "its own message says why, and the same command continues"
        )
    return None


def _nearest(name: str, options: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, options, n=1)
    return f"did you mean {close[0]}?" if close else f"there is {', '.join(sorted(options))}"
