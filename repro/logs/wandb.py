"""Offline runs of wandb: `run-ID.wandb`, its folder `offline-run-...`, or a folder with those of one run.

The file is a log of protobuf records in LevelDB's format (blocks of 32 KiB with checksums). wandb has the
schema of the records but no longer a reader in Python, so the blocks are read here. The number of a record
stands for its line. A row of the history gives a record for each of train, eval and test of which it has
values. Steps are those logged as `global_step` (by Hugging Face and Lightning), or else wandb's.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from repro.logs.gather import Columns, Gathering, find, flat, number, several, whole
from repro.logs.log import Format, Log, Reading, Source, merge
from repro.reading import parse_json

PATTERN = "*.wandb"
_MAGIC = b":W&B"
_START = 7  # bytes before the first record: two magic numbers and the version
_BLOCK = 32768
_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_STEPS = ("global_step", "train/global_step", "trainer/global_step")


def matches(source: Source) -> bool:
    """Return whether this is a wandb file or a folder that has one."""
    if source.path.is_dir():
        return bool(find(source.path, PATTERN))
    return source.data.startswith(_MAGIC)


def read(source: Source) -> Log:
    """Read a run: its history as records, its configuration, its end as an event.

    Raises:
        LogError: there is no number in its history, or it is a folder of several runs.
    """
    if not source.path.is_dir():
        return _read(source)
    paths = find(source.path, PATTERN)
    if len({path.name for path in paths}) > 1:  # a resumed run keeps its ID
        raise several(source.path, [str(path) for path in paths])
    logs = [_read(Source(path)) for path in paths]
    return merge(logs) if len(logs) > 1 else logs[0]


def _read(source: Source) -> Log:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    reading = Reading(source)
    config: dict[str, Any] = {}
    rows: list[tuple[int, int | None, dict[str, Any]]] = []
    ended = False
    for count, content in enumerate(_contents(source.data), 1):
        try:
            if isinstance(content, str):
                raise ValueError(content)
            record = Record.FromString(content)
            kind = record.WhichOneof("record_type")
            if kind == "history":
                rows.append((count, record.history.step.num, _items(record.history.item)))
                continue  # counted below
            if kind == "run":
                config |= _items(record.run.config.update)
            elif kind == "config":
                config |= _items(record.config.update)
        except (ValueError, RecursionError, DecodeError) as error:
            reading.fault(count, f"record {count}: {error}")
            continue
        reading.other()
        if kind == "exit":
            ended = True
            reading.events.append({"line": count, "what": "exit", "code": record.exit.exit_code})
    config.pop("_wandb", None)  # wandb's own
    if not ended:
        reading.oddities.append(f"{source.path}: the run has no end: it was killed, or is still going on")
    return _log(reading, rows, config)


def _log(reading: Reading, rows: list[tuple[int, int | None, dict[str, Any]]], config: dict[str, Any]) -> Log:
    columns = Columns()
    gathering = Gathering(reading)
    own = next((key for key in _STEPS if rows and all(key in row for *_, row in rows)), None)
    if own is None and any(key in row for *_, row in rows for key in _STEPS):
        reading.oddities.append(f"{reading.source.path}: some rows lack a global step: wandb's own is taken")
    for count, index, row in rows:
        step = whole(row[own] if own else row.get("_step", index))
        if step is None:
            reading.fault(count, f"record {count}: {own or '_step'} is no step ({row.get(own or '_step')})")
            continue
        values = {}
        for tag, value in flat(row):
            converted = number(value)
            if tag == "_runtime" and converted is not None:
                values["seconds"] = converted
            elif tag in _STEPS or tag.startswith("_"):
                continue
            elif converted is None:
                reading.events.append({"line": count, "what": _kind(value), "step": step})
            else:
                values[columns[tag]] = converted
        gathering.add(count, step, values)
    return gathering.log("wandb", config)


def _contents(data: bytes) -> Iterator[bytes | str]:
    """Yield the content of each record, or the fault of a damaged one, after which the next block is read."""
    position = _START
    parts: list[bytes] | None = None
    while position < len(data):
        rest = _BLOCK - position % _BLOCK
        header = data[position : position + _HEADER.size]
        if rest < _HEADER.size:  # padding, as no header fits
            position += rest
            continue
        if len(header) < _HEADER.size:
            break
        checksum, size, kind = _HEADER.unpack(header)
        content = data[position + _HEADER.size : position + _HEADER.size + size]
        if len(content) < size and position + rest >= len(data):
            break
        if size > rest - _HEADER.size or zlib.crc32(content, zlib.crc32(bytes([kind]))) != checksum:
            yield f"damaged at byte {position}; the rest of the block ({rest} bytes) is left out"
            position += rest
            parts = None
            continue
        position += _HEADER.size + size
        if kind in (_FULL, _FIRST):
            if parts is not None:
                yield f"ends early, before byte {position}"
            parts = [content]
        elif parts is not None:  # None: its first part was damaged
            parts.append(content)
        if parts is not None and kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = None
    else:
        if parts is None:
            return
    yield "the file ends within it"


def _items(items: Iterable[Any]) -> dict[str, Any]:
    """Return the values of a row by key, nested ones as `a.b`."""
    return {".".join(item.nested_key) or item.key: parse_json(item.value_json) for item in items}


def _kind(value: object) -> str:
    return str(value["_type"]) if isinstance(value, dict) else f"{type(value).__name__} value"


FORMAT = Format("wandb", "wandb offline run", matches, read)
