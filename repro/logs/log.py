"""What every reader returns, and what it needs to account for each line of a file.

One table serves all formats. Each row of it is one record of the log; columns a format lacks are absent:

    record      what the line reports: `train` (some steps), `epoch`, `eval` or `test`
    epoch, step position as the log writes it, which may count from 0 or from 1 (see `Format.epochs_from`)
    lr, train_loss, eval_loss, eval_top1, ...    numbers, seldom text; `Log.units` has the unit of each
    segment     0, and 1 more after each resume
    file, line  where the record stands: index into `Log.paths`, and line number from 1
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from repro.logs.source import LogError, Source

UNKNOWN = "as logged"  # the unit of a column of which the log does not say it

__all__ = ["POSITION", "SHOWN_FAULTS", "UNKNOWN", "Format", "Log", "LogError", "Reading", "Source", "merge"]

POSITION = ("record", "epoch", "step", "segment", "file", "line")
SHOWN_FAULTS = 3  # in an error; a log has them all


@dataclass
class Log:
    """A training log: its records as a table, and what became of every line that is not in it."""

    format: str  # key of repro.logs.FORMATS
    paths: list[Path]
    table: pd.DataFrame
    units: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)  # settings, where the log states them
    lines: Counter[str] = field(default_factory=Counter)  # record, other, fault: of these each line is one
    repeated: int = 0  # records that a later one of the same position replaced
    faults: list[str] = field(default_factory=list)  # "FILE:LINE: why": what could not be read
    oddities: list[str] = field(default_factory=list)  # what was read, but is worth knowing
    events: list[dict[str, Any]] = field(default_factory=list)  # {"line", "what", "step", ...}, not records

    @property
    def position(self) -> str:
        """The column that orders the records: `step` where there is one, else `epoch`."""
        return "step" if "step" in self.table else "epoch"

    @property
    def resumes(self) -> int:
        """How often the run was resumed, as far as the log shows."""
        return int(self.table["segment"].max())

    def of(self, *records: str) -> pd.DataFrame:
        """The rows of the table of these kinds of record, without the columns that are empty there."""
        return self.table[self.table["record"].isin(records)].dropna(axis="columns", how="all")

    def series(self, column: str) -> pd.Series:
        """The values of a column by position, over the records that have one."""
        rows = self.table.dropna(subset=[column])
        return pd.Series(rows[column].to_numpy(), rows[self.position].to_numpy(), name=column)


@dataclass(frozen=True)
class Format:
    """A kind of log: how to recognise it and how to read it."""

    name: str
    title: str
    matches: Callable[[Source], bool]
    read: Callable[[Source], Log]
    epochs_from: int | None = 1  # the number the log gives to its first epoch; None: as its program likes
    line: re.Pattern[str] | None = None  # how its records begin, to know them in a log of another format


class Reading:
    """Collects what a reader finds. Every line must be accounted for, once: `record`, `other` or `fault`."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.rows: list[dict[str, Any]] = []
        self.lines: Counter[str] = Counter()
        self.faults: list[str] = []
        self.oddities: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.segment = 0
        self.resumed_at = -1  # number of records there were

    def at(self, number: int) -> str:
        """Name a place."""
        return f"{self.source.path}:{number}"

    def sound(self, closed: bool = False) -> Iterator[tuple[int, str]]:
        """Yield the lines to be read, with their numbers; blank and damaged ones are accounted for here.

        Damaged are lines with bytes that are not text, records of another format, and a last line without a
        line end, as its last number may have lost digits. Lines of a `closed` format (JSON) show by
        themselves whether they are whole.
        """
        lines = self.source.lines
        for number, line in enumerate(lines, 1):
            strangers = (title for title, record in self.source.strangers.items() if record.match(line))
            if not line.strip():
                self.other()
            elif "\ufffd" in line or "\0" in line:
                self.fault(number, "bytes that are not text")
            elif stranger := next(strangers, None):
                self.fault(number, f"a line of another log ({stranger})")
            elif number == len(lines) and self.source.unfinished and not closed:
                self.fault(number, "cut off: the file ends without a line end")
            else:
                yield number, line

    def record(self, number: int, record: str, values: dict[str, Any], same_line: bool = False) -> None:
        """Keep the record of line `number`; `same_line` if the line has given one already."""
        if not same_line:
            self.lines["record"] += 1
        place = {"segment": self.segment, "file": 0, "line": number}
        self.rows.append({"record": record, **values, **place})

    def part(self, number: int, record: str, values: dict[str, Any]) -> bool:
        """Keep line `number` as a record, or as more of the last one of its kind if that has its position.

        Return whether it is a record of its own. Values that are there already make it one.
        """
        last = next((row for row in reversed(self.rows) if row["record"] == record), None)
        shared = {name for name in ("epoch", "step") if name in values}
        if (
            last is None
            or last["segment"] != self.segment
            or any(name in last and last[name] != values[name] for name in shared)
            or not last.keys().isdisjoint(values.keys() - shared)
        ):
            self.record(number, record, values)
            return True
        last.update(values)
        self.lines["record"] += 1
        return False

    def other(self, count: int = 1) -> None:
        """Pass over lines that are sound and hold no record: headers, rules, settings, blank lines."""
        self.lines["other"] += count

    def fault(self, number: int, why: str) -> None:
        """Leave out line `number`."""
        self.lines["fault"] += 1
        self.faults.append(f"{self.at(number)}: {why}")

    def odd(self, number: int, what: str) -> None:
        """Remark on line `number`."""
        self.oddities.append(f"{self.at(number)}: {what}")

    def resumed(self, number: int, how: str) -> None:
        """Begin a new segment at line `number`, unless no record has come since the last one began."""
        if self.resumed_at != len(self.rows):
            self.segment += 1
            self.resumed_at = len(self.rows)
            self.odd(number, f"the run was resumed here ({how})")

    def log(self, format: str, units: dict[str, str], config: dict[str, Any] | None = None) -> Log:
        """Return the log, in order, later records replacing earlier ones of the same position.

        Raises:
            LogError: not one record was found.
        """
        if self.source.truncated:
            self.faults.append(f"{self.source.path}: the compressed file ends early or is damaged")
        if not self.rows:
            first = f"; first fault: {self.faults[0]}" if self.faults else ""
            raise LogError(f"{self.source.path}: no record in it that could be read{first}")
        self._remark_on_numbers()
        self._find_resumes("step" if any("step" in row for row in self.rows) else "epoch")
        table = pd.DataFrame(self.rows)
        units = {column: units.get(column, UNKNOWN) for column in table if column not in POSITION}
        log = Log(format, [self.source.path], table, units, config or {}, self.lines)
        log.faults, log.oddities, log.events = self.faults, self.oddities, self.events
        return _resolve(log)

    def _remark_on_numbers(self) -> None:
        """Say which columns have values that are not finite."""
        places = defaultdict(list)
        for row in self.rows:
            for column, value in row.items():
                if isinstance(value, float) and not math.isfinite(value):
                    places[column, str(value)].append(row["line"])
        for (column, value), lines in places.items():
            more = f" (and in {len(lines) - 1} more records)" if len(lines) > 1 else ""
            self.odd(lines[0], f"{column} is {value}{more}")

    def _find_resumes(self, position: str) -> None:
        """Begin a segment where the records of a kind go back, unless they do so all the time."""
        last: dict[tuple[str, int], float] = {}
        segments: list[int] = []
        backs: list[tuple[int, float]] = []
        for row in self.rows:
            now, key = row.get(position, math.nan), (row["record"], row["segment"] + len(backs))
            if now <= last.get(key, -math.inf):
                backs.append((row["line"], now))
                key = (row["record"], row["segment"] + len(backs))
            segments.append(key[1])
            if not math.isnan(now):
                last[key] = now
        if len(backs) > max(1, len(self.rows) // 4):
            why = "several processes wrote it, or it restarted often"
            self.oddities.append(f"{self.source.path}: the {position} goes back {len(backs)} times: {why}")
            return
        for row, segment in zip(self.rows, segments, strict=True):
            row["segment"] = segment
        for number, now in backs:
            self.odd(number, f"the run was resumed here ({position} goes back to {now})")


def merge(logs: Sequence[Log]) -> Log:
    """Return one log of a run that was written to several files, given in the order they were written in.

    Where two have a record of one position, the later file's is kept, as the run went on from there.

    Raises:
        LogError: they are of different formats.
    """
    first = logs[0]
    tables, lines, segment = [], Counter[str](), 0
    for index, log in enumerate(logs):
        if log.format != first.format:
            raise LogError(f"{log.paths[0]} is a {log.format} log, {first.paths[0]} a {first.format} one")
        segments = log.table["segment"] - log.table["segment"].min() + segment
        tables.append(log.table.assign(file=index, segment=segments))
        segment = int(segments.max()) + 1
        lines += log.lines
    units: dict[str, str] = {}
    for column, unit in (pair for log in logs for pair in log.units.items()):
        if units.get(column, UNKNOWN) == UNKNOWN:  # one part may say what another does not
            units[column] = unit
    merged = Log(
        first.format,
        [path for log in logs for path in log.paths],
        pd.concat(tables, ignore_index=True),
        units,
        next((log.config for log in logs if log.config), {}),
        lines,
        sum(log.repeated for log in logs),
        [fault for log in logs for fault in log.faults],
        [oddity for log in logs for oddity in log.oddities],
        [{**event, "file": index} for index, log in enumerate(logs) for event in log.events],
    )
    return _resolve(merged)


def _resolve(log: Log) -> Log:
    """Put the records in order, drop those that a later one replaces, and remark on what is odd."""
    table, position = log.table, log.position
    key = ["record", position]
    later = table.duplicated(key, keep="last")
    if later.any():
        positions = sorted(table[position][later].unique())
        shown = f"{positions[0]:.15g}" + (f" to {positions[-1]:.15g}" if len(positions) > 1 else "")
        log.oddities.append(
            f"{int(later.sum())} records repeat their {position} ({shown}): the last one is kept"
        )
    log.repeated += int(later.sum())
    columns = [*(c for c in POSITION if c in table), *(c for c in table if c not in POSITION)]
    log.table = table[~later].sort_values(position, kind="stable", ignore_index=True)[columns]
    return log
