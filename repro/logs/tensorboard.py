"""TensorBoard's event files: one, or the folder of a run, in which further files are restarts.

A file is a sequence of framed events (TFRecord: length, checksum, content, checksum). The frames are read
here because tensorboard's EventAccumulator silently stops at damage. The scalars of one step make one record;
the number of an event in its file stands for the line. Scalars are float32, given as the shortest decimal
number of the same float32. Other events (text, images, histograms) are only counted.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repro.logs.gather import Columns, Gathering, find, several
from repro.logs.log import Format, Log, Reading, Source

PATTERN = "*tfevents*"
_HEADER, _CHECKSUM = 12, 4  # bytes: length and its checksum; the content's checksum
_TIME = re.compile(r"tfevents\.(\d{1,18})")


def matches(source: Source) -> bool:
    """Return whether this is an event file (its first frame is sound) or a folder that has some."""
    if source.path.is_dir():
        return bool(find(source.path, PATTERN))
    start = source.data[:_HEADER]
    return len(start) == _HEADER and start[4:8] == bytes(4) and _sound(start[:8], start[8:])


def read(source: Source) -> Log:
    """Read a run.

    Raises:
        LogError: there is no scalar in it, or it is a folder of several runs.
    """
    paths = sorted(find(source.path, PATTERN), key=_begin) if source.path.is_dir() else [source.path]
    if len(folders := sorted({str(path.parent) for path in paths})) > 1:
        raise several(source.path, folders)
    reading, columns = Reading(source), Columns()
    gathering = Gathering(reading)
    seen: set[str] = set()
    for index, path in enumerate(paths):
        file = _read_file(path)
        reading.lines += file.reading.lines
        reading.faults += file.reading.faults
        reading.oddities += file.reading.oddities
        reading.events += [{**event, "file": index} for event in file.reading.events]
        tags = {tag for piece in file.pieces for tag in piece.scalars}
        if not tags:
            reading.oddities.append(f"{path}: no scalar in it")
        if tags & seen:
            reading.segment += 1
            reading.oddities.append(f"{path}: the run was resumed here (a further event file)")
        seen |= tags
        for piece in file.pieces:
            values = {columns[tag]: value for tag, value in piece.scalars.items()}
            gathering.add(piece.event, piece.step, {**values, "seconds": piece.seconds}, index)
    log = gathering.log("tensorboard")
    log.paths = paths
    return log


@dataclass
class _Piece:
    """The scalars of one event, mostly a single one."""

    event: int
    step: int
    seconds: float
    scalars: dict[str, float]


@dataclass
class _File:
    reading: Reading
    pieces: list[_Piece] = field(default_factory=list)


def _read_file(path: Path) -> _File:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorboard.compat.proto.event_pb2 import Event

    file = _File(Reading(Source(path)))
    reading, begin = file.reading, None
    for count, content in enumerate(_frames(reading.source.data), 1):
        try:
            if isinstance(content, str):
                raise ValueError(content)
            event = Event.FromString(content)
        except (ValueError, DecodeError) as error:
            reading.fault(count, f"event {count}: {error}")
            continue
        begin = event.wall_time if begin is None else begin
        scalars = {}
        for value in event.summary.value:
            number = _number(value)
            if number is None:
                reading.events.append({"line": count, "what": _kind(value), "step": event.step})
            else:
                scalars[value.tag] = number
        if scalars:
            seconds = round(event.wall_time - begin, 3)
            file.pieces.append(_Piece(count, event.step, seconds, scalars))
        else:
            reading.other()
    return file


def _frames(data: bytes) -> Iterator[bytes | str]:
    """Yield the content of each frame, or the fault of a damaged one."""
    position = 0
    while position < len(data):
        rest = len(data) - position
        header = data[position : position + _HEADER]
        if len(header) < _HEADER:
            yield f"the file ends within it ({rest} bytes at byte {position})"
            return
        if not _sound(header[:8], header[8:]):
            yield f"damaged at byte {position}; it and all that follows ({rest} bytes) is left out"
            return
        (size,) = struct.unpack("<Q", header[:8])
        end = position + _HEADER + size
        content, checksum = data[position + _HEADER : end], data[end : end + _CHECKSUM]
        if len(checksum) < _CHECKSUM:
            yield f"the file ends within it ({rest} bytes at byte {position})"
            return
        yield content if _sound(content, checksum) else f"damaged at byte {position} (its checksum is wrong)"
        position = end + _CHECKSUM


def _sound(content: bytes, checksum: bytes) -> bool:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    return bool(masked_crc32c(content) == struct.unpack("<I", checksum)[0])


def _number(value: Any) -> float | None:
    """Return the number of a scalar summary, in the old or new form, or None for other summaries."""
    import numpy as np

    if value.HasField("simple_value"):
        return float(str(np.float32(value.simple_value)))
    if value.metadata.plugin_data.plugin_name != "scalars":
        return None
    from tensorboard.util.tensor_util import make_ndarray

    try:
        array = make_ndarray(value.tensor)
        return float(str(array.item()) if array.dtype != np.float32 else str(np.float32(array.item())))
    except (TypeError, ValueError):  # no single number
        return None


def _kind(value: Any) -> str:
    return value.metadata.plugin_data.plugin_name or value.WhichOneof("value") or "empty summary"


def _begin(path: Path) -> tuple[int, str]:
    """Return the time in a file's name, in seconds, and the name."""
    found = _TIME.search(path.name)
    return int(found[1]) if found else 0, path.name


FORMAT = Format("tensorboard", "TensorBoard event files", matches, read)
