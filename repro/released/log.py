"""What every reader returns, and what it needs to account for each line of a file.

One table serves all formats. Each row of it is one record of the log; columns a format lacks are absent:

    record      what the line reports: `train` (some steps), `epoch`, `eval` or `test`
    epoch, step position as the log writes it, which may count from 0 or from 1 (see `Format.epochs_from`)
    lr, train_loss, eval_loss, eval_top1, ...    numbers; `Log.units` has the unit of each
    segment     0, and 1 more after each resume
    file, line  where the record stands: index into `Log.paths`, and line number from 1
"""

import math
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]

from repro.errors import UserError

POSITION = ("record", "epoch", "step", "segment", "file", "line")
SHOWN_FAULTS = 3  # in an error; a log has them all


class LogError(UserError):
    """A file that is no log, or not one that can be read. The message names the file and the line."""


@dataclass
class Log:
    """A training log: its records as a table, and what became of every line that is not in it."""

    format: str  # key of repro.released.FORMATS
    paths: list[Path]
    table: pd.DataFrame
    units: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)  # settings, where the log states them
    lines: Counter[str] = field(default_factory=Counter)  # record, other, fault: of these each line is one
    repeated: int = 0  # records that a later one of the same position replaced
    faults: list[str] = field(default_factory=list)  # "FILE:LINE: why": lines that could not be read
    oddities: list[str] = field(default_factory=list)  # what was read, but is worth knowing
    events: list[dict[str, Any]] = field(default_factory=list)  # {"line", "what", "step", ...} beside records

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
    matches: Callable[["Source"], bool]
    read: Callable[["Source"], Log]
    epochs_from: int = 1  # the number the log gives to the end of its first epoch


class Source:
    """A file or folder to be read, with its text as numbered lines.

    Compressed files (gzip) are opened; a byte order mark and CRLF are removed; bytes that are not UTF-8
    become U+FFFD, so that a damaged line is one line's fault.

    Raises:
        LogError: there is no such file, or it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise LogError(f"{path}: no such file or folder")

    @cached_property
    def data(self) -> bytes:
        """The file's content, decompressed as far as it goes."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise LogError(f"{self.path}: cannot be read ({error.strerror})") from error
        if content[:2] != b"\x1f\x8b":
            return content
        stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            content = stream.decompress(content)
        except zlib.error as error:
            raise LogError(f"{self.path}: broken gzip file ({error}); get it again") from error
        self.truncated = not stream.eof
        return content

    truncated = False  # the compressed file ends early

    @cached_property
    def lines(self) -> list[str]:
        """The lines of text; line number n is at n - 1.

        Raises:
            LogError: the file is empty, or is no text.
        """
        if not self.data:
            raise LogError(f"{self.path}: the file is empty")
        if b"\0" in self.data[:8192]:
            raise LogError(f"{self.path}: a binary file, not a log that this reads")
        text = self.data.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
        return text.removesuffix("\n").split("\n")

    @property
    def head(self) -> list[str]:
        """The first lines that are not blank, stripped: enough to recognise a format by."""
        if self.path.is_dir() or b"\0" in self.data[:8192]:
            return []
        return [line.strip() for line in self.lines[:200] if line.strip()][:20]


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
        if source.truncated:
            self.oddities.append(f"{source.path}: the compressed file ends early; get it again")

    def at(self, number: int) -> str:
        """Name a place."""
        return f"{self.source.path}:{number}"

    def record(self, number: int, record: str, values: dict[str, Any], same_line: bool = False) -> None:
        """Keep the record of line `number`; `same_line` if the line has given one already."""
        if not same_line:
            self.lines["record"] += 1
        for column, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                self.odd(number, f"{column} is {value}")
        place = {"segment": self.segment, "file": 0, "line": number}
        self.rows.append({"record": record, **values, **place})

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
        """Begin a new segment at line `number`."""
        self.segment += 1
        self.odd(number, f"the run was resumed here ({how})")

    def log(self, format: str, units: dict[str, str], config: dict[str, Any] | None = None) -> Log:
        """Return the log, in order, later records replacing earlier ones of the same position.

        Raises:
            LogError: not one record was found.
        """
        if not self.rows:
            first = f"; first fault: {self.faults[0]}" if self.faults else ""
            raise LogError(f"{self.source.path}: no record in it that could be read{first}")
        table = pd.DataFrame(self.rows)
        position = "step" if "step" in table else "epoch"
        back = int(sum((rows[position].diff() < 0).sum() for _, rows in table.groupby("record")))
        if back > max(1, self.segment):
            why = "several processes wrote it, or it restarted often"
            self.oddities.append(f"{self.source.path}: the {position} goes back {back} times: {why}")
        log = Log(format, [self.source.path], table, units, config or {}, self.lines)
        log.faults, log.oddities, log.events = self.faults, self.oddities, self.events
        return _resolve(log)


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
        tables.append(log.table.assign(file=index, segment=log.table["segment"] + segment))
        segment = int(tables[-1]["segment"].max()) + 1
        lines += log.lines
    merged = Log(
        first.format,
        [path for log in logs for path in log.paths],
        pd.concat(tables, ignore_index=True),
        {column: unit for log in logs for column, unit in log.units.items()},
        first.config,
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
        shown = f"{positions[0]:g}" + (f" to {positions[-1]:g}" if len(positions) > 1 else "")
        log.oddities.append(f"{int(later.sum())} records repeat a {position} ({shown}): the last one is kept")
    log.repeated += int(later.sum())
    columns = [*(c for c in POSITION if c in table), *(c for c in table if c not in POSITION)]
    log.table = table[~later].sort_values(position, kind="stable", ignore_index=True)[columns]
    return log
