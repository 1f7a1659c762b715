"""The result of every reader, and the means to account for each line of a file.

One table serves all formats. Each row is one record of the log; columns that a format lacks are absent:

    record      `train` (some steps), `epoch`, `eval` or `test`
    epoch, step position as in the log, which may count from 0 or from 1 (see `Format.epochs_from`)
    lr, train_loss, eval_loss, eval_top1, ...    numbers, seldom text; `Log.units` has their units
    segment     0, and 1 more after each resume
    file, line  place of the record: index into `Log.paths`, and line number from 1
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.logs.source import LogError, Source

if TYPE_CHECKING:  # it takes a second, and half of the commands read no log
    import pandas as pd

UNKNOWN = "as logged"  # unit of a column whose unit the log does not state

__all__ = ["POSITION", "SHOWN_FAULTS", "UNKNOWN", "Format", "Log", "LogError", "Reading", "Source", "merge"]

POSITION = ("record", "epoch", "step", "segment", "file", "line")
SHOWN_FAULTS = 3  # in an error; `Log.faults` has them all


@dataclass
class Log:
    """A training log: its records as a table, and an account of all other lines."""

    format: str  # key of repro.logs.FORMATS
    paths: list[Path]
    table: "pd.DataFrame"
    units: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)  # settings, if the log states them
    lines: Counter[str] = field(default_factory=Counter)  # number of lines by kind: record, other, fault
    repeated: int = 0  # records that a later one of the same position replaced
    faults: list[str] = field(default_factory=list)  # "FILE:LINE: why" for lines that could not be read
    oddities: list[str] = field(default_factory=list)  # remarks on lines that were read
    events: list[dict[str, Any]] = field(default_factory=list)  # {"line", "what", "step", ...}, not records

    @property
    def position(self) -> str:
        """The column that orders the records: `step` if there is one, else `epoch`."""
        return "step" if "step" in self.table else "epoch"

    @property
    def resumes(self) -> int:
        """How many times the run was resumed, as far as the log shows."""
        return int(self.table["segment"].max())

    def of(self, *records: str) -> "pd.DataFrame":
        """Return the rows of these kinds of record, without columns that are empty in them."""
        return self.table[self.table["record"].isin(records)].dropna(axis="columns", how="all")

    def series(self, column: str) -> "pd.Series":
        """Return the values of a column by position, from the records that have one."""
        import pandas as pd

        rows = self.table.dropna(subset=[column])
        return pd.Series(rows[column].to_numpy(), rows[self.position].to_numpy(), name=column)


@dataclass(frozen=True)
class Format:
    """A format of logs: how to recognise and read it."""

    name: str
    title: str
    matches: Callable[[Source], bool]
    read: Callable[[Source], Log]
    epochs_from: int | None = 1  # number of the first epoch; None: depends on the program
    line: re.Pattern[str] | None = None  # beginning of its records, to recognise them in other logs


class Reading:
    """Collects what a reader finds. Every line counts once, as `record`, `other` or `fault`."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.rows: list[dict[str, Any]] = []
        self.lines: Counter[str] = Counter()
        self.faults: list[str] = []
        self.oddities: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.segment = 0
        self.resumed_at = -1  # number of records at the last resume

    def at(self, number: int) -> str:
        """Return FILE:LINE."""
        return f"{self.source.path}:{number}"

    def sound(self, closed: bool = False) -> Iterator[tuple[int, str]]:
        """Yield the lines to be read, with their numbers; blank and damaged ones are counted here.

        A line is damaged if it has bytes that are not text, is a record of another format, or is the last and
        has no line end, as its last number may have lost digits. Lines of a `closed` format (JSON) show by
        themselves whether they are complete.
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
        """Keep a record of line `number`; with `same_line` the line is already counted."""
        if not same_line:
            self.lines["record"] += 1
        place = {"segment": self.segment, "file": 0, "line": number}
        self.rows.append({"record": record, **values, **place})

    def part(self, number: int, record: str, values: dict[str, Any]) -> bool:
        """Keep line `number` as a record, or add it to the last one of its kind and position.

        A value that is already there makes it a record of its own. Return whether it is one.
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
        """Count sound lines without a record: headers, rules, settings, blank lines."""
        self.lines["other"] += count

    def fault(self, number: int, why: str) -> None:
        """Leave out line `number`, for the reason `why`."""
        self.lines["fault"] += 1
        self.faults.append(f"{self.at(number)}: {why}")

    def odd(self, number: int, what: str) -> None:
        """Remark on line `number`."""
        self.oddities.append(f"{self.at(number)}: {what}")

    def resumed(self, number: int, how: str) -> None:
        """Begin a new segment at line `number`, unless there was no record since the last one began."""
        if self.resumed_at != len(self.rows):
            self.segment += 1
            self.resumed_at = len(self.rows)
            self.odd(number, f"the run was resumed here ({how})")

    def log(self, format: str, units: dict[str, str], config: dict[str, Any] | None = None) -> Log:
        """Return the log in order; later records replace earlier ones of the same position.

        Raises:
            LogError: there is no record.
        """
        import pandas as pd

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
        """Remark on columns with values that are not finite."""
        places = defaultdict(list)
        for row in self.rows:
            for column, value in row.items():
                if isinstance(value, float) and not math.isfinite(value):
                    places[column, str(value)].append(row["line"])
        for (column, value), lines in places.items():
            more = f" (and in {len(lines) - 1} more records)" if len(lines) > 1 else ""
            self.odd(lines[0], f"{column} is {value}{more}")

    def _find_resumes(self, position: str) -> None:
        """Begin a segment wherever the records of a kind go back, unless they often do."""
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
    """Return one log of a run that was written to several files, given in the order of writing.

    If two files have a record of the same position, the later one is kept, as the run continued from there.

    Raises:
        LogError: the files have different formats.
    """
    import pandas as pd

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
        if units.get(column, UNKNOWN) == UNKNOWN:  # one part may state what another does not
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
    """Sort the records, and drop those that a later one replaces."""
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
