"""Readers of training logs: those released with Adan, and those that people's own runs leave."""

from collections.abc import Sequence
from pathlib import Path

from repro.released import (
    huggingface,
    runs,
    tensorboard,
    timm,
    wandb,
)
from repro.released.log import SHOWN_FAULTS, Format, Log, LogError, Source, merge

_READERS = (
    timm,
    runs,
    huggingface,
    wandb,
    tensorboard,
)
FORMATS: dict[str, Format] = {module.FORMAT.name: module.FORMAT for module in _READERS}

__all__ = ["FORMATS", "Format", "Log", "LogError", "read", "recognise"]


def recognise(source: Source) -> Format:
    """Return the format of a file or folder, by its content.

    Raises:
        LogError: none of FORMATS.
    """
    for format in FORMATS.values():
        if format.matches(source):
            return format
    known = ", ".join(format.title for format in FORMATS.values())
    first = f"; it begins with {source.head[0][:80]!r}" if source.head else ""
    raise LogError(f"{source.path}: not a log that this reads ({known}){first}")


def read(paths: Path | Sequence[Path], strict: bool = False) -> Log:
    """Read a log, or one run's several logs in the order they were written in.

    Lines that cannot be read are left out and listed in `faults`.

    Raises:
        LogError: nothing of it can be read; with `strict`, also when a line cannot.
    """
    logs = []
    for path in [paths] if isinstance(paths, Path) else paths:
        source = Source(path)
        logs.append(recognise(source).read(source))
    log = logs[0] if len(logs) == 1 else merge(logs)
    if strict and log.faults:
        more = len(log.faults) - SHOWN_FAULTS
        shown = "; ".join(log.faults[:SHOWN_FAULTS]) + (f"; and {more} more" if more > 0 else "")
        raise LogError(f"{len(log.faults)} lines cannot be read: {shown}")
    return log
