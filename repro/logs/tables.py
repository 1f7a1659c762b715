"""Tables that no other format claims: CSV with a header and any separator, and JSON lines.

Lightning, Keras, fastai and many scripts write such logs. Common names become those of our table (see
gather.column), every column is kept, and no unit is known. A column without any number is kept as text. The
position is a column of steps (see STEPS), else `epoch`. With steps, the names of the values tell whether a
line is a record of training, evaluation or test, and lines of one kind and step are one record. Without, each
line is an epoch.
"""

import csv
import re
from collections import Counter
from typing import Any

from repro.logs.gather import STAGES, Columns, flat
from repro.logs.log import Format, Log, LogError, Reading
from repro.logs.source import Source, json_object, numeric, whole

# columns of steps, best first
STEPS = ("global_step", "trainer/global_step", "num_updates", "step", "steps", "iteration", "iter")
EPOCHS = ("epoch", "epochs")
KINDS = ("mode", "split", "phase", "stage", "type")  # JSON keys whose value is the stage of a record
SEPARATORS = (",", ";", "\t", "|", None)  # None: blanks
# line number and values by name; None: the header is repeated here
Entries = list[tuple[int, dict[str, Any] | None]]
_DECIMAL = re.compile(r"-?\d+,\d+([eE][+-]?\d+)?")
_WORD = re.compile(r"[A-Za-z_][\w/.@%()-]*")


def _position(names: Any, wanted: tuple[str, ...]) -> str | None:
    """Return the name of the position: the first of `wanted` that is there, in any case."""
    lower = {str(name).lower(): name for name in reversed(list(names))}
    return next((lower[name] for name in wanted if name in lower), None)


def _split(line: str, separator: str | None) -> list[str]:
    """Return the cells of a line, stripped.

    Raises:
        csv.Error: the line is malformed.
    """
    if separator is None:
        return line.split()
    cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    if separator == ";":  # then the comma is the decimal point
        cells = [cell.replace(",", ".") if _DECIMAL.fullmatch(cell.strip()) else cell for cell in cells]
    return [cell.strip() for cell in cells]


def _header(line: str) -> tuple[str | None, list[str]] | None:
    """Return the separator and the names in a header, or None if the line is not a header."""
    for separator in SEPARATORS:
        names = _cells(line.lstrip("# "), separator)
        if separator is None and not (len(set(names)) == len(names) and all(map(_WORD.fullmatch, names))):
            continue  # a sentence
        several = len(list(filter(None, names))) > 1
        if several and not any(map(_is_number, names)) and _position(names, STEPS + EPOCHS):
            return separator, _told_apart(names)
    return None


def _told_apart(names: list[str]) -> list[str]:
    """Return unique names; an empty one (as of pandas' index) or a repeated one gets its number."""
    seen = Counter[str]()
    for place, name in enumerate(names, 1):
        seen[name] += 1
        if not name or seen[name] > 1:
            names[place - 1] = f"{name or 'column'} ({place})"
    return names


def _is_number(cell: Any) -> bool:
    try:
        numeric(cell)
    except ValueError:
        return False
    return True


def matches_csv(source: Source) -> bool:
    """Return whether the file begins with a header that has a position with a number below."""
    head = source.head
    header = _header(head[0]) if head else None
    if header is None:
        return False
    separator, names = header
    place = names.index(_position(names, STEPS + EPOCHS) or "")
    rows = (_cells(line, separator) for line in head[1:])
    return len(head) == 1 or any(len(row) == len(names) and _is_number(row[place]) for row in rows)


def _cells(line: str, separator: str | None) -> list[str]:
    """Return the cells of a line, none if it is malformed."""
    try:
        return _split(line, separator)
    except csv.Error:
        return []


def read_csv(source: Source) -> Log:
    """Read a table with a header, which may be repeated where the run was resumed.

    Raises:
        LogError: there is no record, or epochs have several lines each.
    """
    reading = Reading(source)
    separator, names = _header(source.head[0] if source.head else "") or (",", [])
    entries: Entries = []
    for number, line in reading.sound():
        try:
            cells = _split(line, separator)
        except csv.Error as error:
            reading.fault(number, f"not a row of the table ({error})")
            continue
        header = None if any(map(_is_number, cells)) else _header(line)
        if header is not None and header[0] == separator:
            names = header[1]
            entries.append((number, None))
        elif len(cells) == len(names):
            entries.append((number, {name: cell for name, cell in zip(names, cells, strict=True) if cell}))
        else:
            reading.fault(number, f"{len(cells)} values under {len(names)} columns")
    return _log(reading, "csv", entries)


def matches_json(source: Source) -> bool:
    """Return whether one of the first lines is a JSON object with a position."""
    records = (dict(flat(record)) for record in source.objects)
    return any(
        _is_number(record[place]) for record in records if (place := _position(record, STEPS + EPOCHS))
    )


def read_json(source: Source) -> Log:
    """Read a file with one JSON object per line; nested keys become `a.b`.

    Raises:
        LogError: there is no record, or epochs have several lines each.
    """
    reading = Reading(source)
    entries: Entries = []
    for number, line in reading.sound(closed=True):
        try:
            entries.append((number, _staged(dict(flat(json_object(line))))))
        except ValueError as error:
            reading.fault(number, str(error))
    return _log(reading, "jsonl", entries)


def _staged(record: dict[str, Any]) -> dict[str, Any]:
    """Return the values other than None; a value that is a stage becomes the prefix of the other names."""
    told = next((name for name in KINDS if str(record.get(name)).lower() in STAGES), None)
    places = {_position(record, STEPS), _position(record, EPOCHS)}
    return {
        name if told is None or name in places else f"{record[told]}/{name}": value
        for name, value in record.items()
        if value is not None and name != told
    }


def _log(reading: Reading, format: str, entries: Entries) -> Log:
    """Return the log of these entries.

    Raises:
        LogError: as `read_csv`.
    """
    values = [(name, value) for _, entry in entries if entry for name, value in entry.items()]
    names = dict.fromkeys(name for name, _ in values)
    step, epoch = _position(names, STEPS), _position(names, EPOCHS)
    if step is not None and epoch is not None:
        _refuse_steps_of_an_epoch(reading, entries, step, epoch)
    numbers = {name for name, value in values if _is_number(value)}
    texts = {*names} - numbers - {name for name, value in values if not isinstance(value, str)}
    columns, lost, again = Columns(() if epoch is None else ("epoch",)), Counter[str](), 0
    for number, entry in entries:
        if entry is None:
            if reading.rows:
                reading.resumed(number, "a second header")
            reading.other()
            continue
        try:
            position = _place(entry, step, epoch)
        except ValueError as error:
            reading.fault(number, str(error))
            continue
        measured: dict[str, Any] = {}
        for name, value in entry.items():
            if name in (step, epoch):
                continue
            if name in texts or _is_number(value):
                measured[columns[name]] = value if name in texts else numeric(value)
            else:
                lost[name] += 1
        if not measured:
            reading.other()
            continue
        before = reading.rows[-1].get("epoch") if reading.rows else None
        alone = reading.part(number, _kind(measured) if step else "epoch", {**position, **measured})
        again += step is None and alone and before == position["epoch"]
    if again > max(1, len(reading.rows) // 4):
        raise LogError(
            f"{reading.source.path}: {again} lines have the epoch of the line before: "
            "add a column `step` that counts over the whole run"
        )
    path = reading.source.path
    reading.oddities += [f"{path}: {name!r:.80} is text" for name in names if name in texts]
    reading.oddities += [f"{path}: {name!r:.80} is no number in {count} lines, where it is left out"
                         for name, count in lost.items()]  # fmt: skip
    return reading.log(format, {})


def _place(entry: dict[str, Any], step: str | None, epoch: str | None) -> dict[str, Any]:
    """Return the position of a line as columns of the table.

    Raises:
        ValueError: the line has no position.
    """
    position: dict[str, Any] = {}
    if step is not None:
        if step not in entry:
            raise ValueError(f"no {step}")
        position["step"] = whole(entry[step])
    if epoch is not None and (epoch in entry or step is None):
        if epoch not in entry:
            raise ValueError(f"no {epoch}")
        done = numeric(entry[epoch])
        if not 0 <= done < 2**53:
            raise ValueError(f"{entry[epoch]!r:.80} is no position in a run")
        position["epoch"] = int(done) if done.is_integer() else done
    if not position:
        raise ValueError("no epoch and no step")
    return position


def _kind(columns: dict[str, Any]) -> str:
    """Return the kind of a record with these columns."""
    return next((k for k in ("eval", "test") if any(name.startswith(f"{k}_") for name in columns)), "train")


def _refuse_steps_of_an_epoch(reading: Reading, entries: Entries, step: str, epoch: str) -> None:
    """Raise LogError if steps restart with every epoch, so that they are no position in the run."""
    last: tuple[float, float] | None = None
    for number, entry in entries:
        try:
            now = numeric((entry or {}).get(epoch)), numeric((entry or {}).get(step))
        except ValueError:
            continue
        if last is not None and now[0] > last[0] and now[1] < last[1]:
            raise LogError(
                f"{reading.at(number)}: {step} begins again in epoch {now[0]:g}: "
                "add a column `global_step` that counts over the whole run"
            )
        last = now


CSV = Format("csv", "CSV or another table with a header", matches_csv, read_csv, epochs_from=None)
JSON_LINES = Format("jsonl", "JSON lines", matches_json, read_json, epochs_from=None)
