"""Readers of training logs: those released with Adan, and those that people's own runs leave."""

import math
from collections.abc import Sequence
from pathlib import Path

from repro.released import fairseq, mae, megatron, timm, transformer_xl
from repro.released.log import SHOWN_FAULTS, Format, Log, LogError, Source, merge

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT for module in (timm, mae, fairseq, transformer_xl, megatron)
}

__all__ = ["FORMATS", "Format", "Log", "LogError", "read", "recognise"]


def recognise(source: Source) -> Format:
    """Return the format of a file or folder, by its content; of two, the one whose records come first.

    Raises:
        LogError: none of FORMATS.
    """
    found = [format for format in FORMATS.values() if format.matches(source)]
    if len(found) > 1 and source.head:
        return min(found, key=lambda format: _first_record(source, format))
    if found:
        return found[0]
    known = ", ".join(format.title for format in FORMATS.values())
    if source.path.is_dir():
        raise LogError(f"{source.path}: a folder, and not one that holds a log ({known})")
    if source.binary:
        raise LogError(f"{source.path}: a binary file, not a log ({known})")
    first = f"; it begins with {source.head[0][:80]!r}" if source.head else ""
    raise LogError(f"{source.path}: not a log that this reads ({known}){first}")


def _first_record(source: Source, format: Format) -> float:
    """Return the index of the first line that is a record of a format, which is infinite if none is."""
    record = format.line
    return next((n for n, line in enumerate(source.lines) if record and record.match(line)), math.inf)


def read(paths: Path | Sequence[Path], strict: bool = False) -> Log:
    """Read a log, or one run's several logs in the order they were written in.

    Lines that cannot be read are left out and listed in `faults`.

    Raises:
        LogError: nothing of it can be read; with `strict`, also when a line cannot.
    """
    logs = []
    for path in [paths] if isinstance(paths, Path) else paths:
        source = Source(path)
        format = recognise(source)
        source.strangers = {f.title: f.line for f in FORMATS.values() if f is not format and f.line}
        logs.append(format.read(source))
    log = logs[0] if len(logs) == 1 else merge(logs)
    if strict and log.faults:
        more = len(log.faults) - SHOWN_FAULTS
        shown = "; ".join(log.faults[:SHOWN_FAULTS]) + (f"; and {more} more" if more > 0 else "")
        raise LogError(f"{len(log.faults)} faults: {shown}")
    return log
