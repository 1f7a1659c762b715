"""Readers of training logs: those released with Adan, and those of other frameworks."""

import math
from collections.abc import Sequence
from pathlib import Path

from repro.logs import (
    fairseq,
    huggingface,
    mae,
    megatron,
    mmengine,
    nanogpt,
    runs,
    tables,
    tensorboard,
    timm,
    transformer_xl,
    wandb,
)
from repro.logs.log import SHOWN_FAULTS, Format, Log, LogError, Source, merge

_SCRIPTS = (timm, mae, fairseq, transformer_xl, megatron, nanogpt, mmengine)
_FOLDERS = (runs, huggingface, wandb, tensorboard)
GENERIC = (tables.CSV, tables.JSON_LINES)  # for logs that no other format claims
_ALL = (*(module.FORMAT for module in (*_SCRIPTS, *_FOLDERS)), *GENERIC)
FORMATS: dict[str, Format] = {format.name: format for format in _ALL}

__all__ = ["FORMATS", "Format", "Log", "LogError", "epochs_from", "read", "recognise"]


def recognise(source: Source) -> Format:
    """Return the format of a file or folder, by its content; if two match, the one of the first record.

    Raises:
        LogError: no format matches.
    """
    found = [format for format in FORMATS.values() if format not in GENERIC and format.matches(source)]
    if len(found) > 1 and source.head:
        return min(found, key=lambda format: _first_record(source, format))
    found += [format for format in GENERIC if format.matches(source)]
    if found:
        return found[0]
    known = ", ".join(format.title for format in FORMATS.values())
    if source.path.is_dir():
        raise LogError(
            f"{source.path}: a folder, and not one that holds a log ({known}); name the log itself"
        )
    if source.binary:
        raise LogError(f"{source.path}: a binary file, not a log ({known})")
    first = f"; it begins with {source.head[0][:80]!r}" if source.head else ""
    raise LogError(
        f"{source.path}: not a log that this reads ({known}; tables need a column `epoch` or `step`){first}"
    )


def _first_record(source: Source, format: Format) -> float:
    """Return the index of the first line that is a record of a format, infinity if there is none."""
    record = format.line
    return next((n for n, line in enumerate(source.lines) if record and record.match(line)), math.inf)


def read(paths: Path | Sequence[Path], strict: bool = False) -> Log:
    """Read a log, or several logs of one run in the order in which they were written.

    Lines that cannot be read are left out and listed in `faults`.

    Raises:
        LogError: nothing can be read; with `strict`, also if a single line cannot.
    """
    logs = []
    for path in [paths] if isinstance(paths, Path) else paths:
        source = Source(path)
        format = recognise(source)
        if format not in GENERIC:  # its records may look like those of others
            source.strangers = {f.title: f.line for f in FORMATS.values() if f is not format and f.line}
        logs.append(format.read(source))
    log = logs[0] if len(logs) == 1 else merge(logs)
    if strict and log.faults:
        more = len(log.faults) - SHOWN_FAULTS
        shown = "; ".join(log.faults[:SHOWN_FAULTS]) + (f"; and {more} more" if more > 0 else "")
        raise LogError(f"{len(log.faults)} faults: {shown}")
    return log


def epochs_from(log: Log) -> int:
    """Return the number of the first epoch of a log: its format's, or else 0 if it has an epoch 0."""
    known = FORMATS[log.format].epochs_from
    if known is not None:
        return known
    return int("epoch" not in log.table or log.table["epoch"].min() >= 1)
