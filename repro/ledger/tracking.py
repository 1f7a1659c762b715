"""Compare a run, or any log, with the released curve of a row, by the rule in repro/ledger/verdict.py."""

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from repro.direction import higher_is_better
from repro.ledger.rows import Figure, Row, load
from repro.ledger.verdict import LEAST_TOLERANCE, TOLERANCE, VERDICTS, Curve, VerdictState, worst
from repro.logs import epochs_from
from repro.logs.files import read_log
from repro.logs.log import UNKNOWN, Log, LogError

ENOUGH = 10  # records of siblings from which a tolerance can be taken


class Tracker:
    """Compares the records of a run with the released curves of its row.

    `memory` holds everything that later verdicts depend on, JSON-able; the loop keeps it in its checkpoints.
    """

    def __init__(self, row: Row | None, memory: dict[str, Any]) -> None:
        self.row, self.memory = row, memory
        self.curves: dict[str, Curve] = {}
        self.untracked: str | None = None  # why there is no comparison with a curve
        self.position = "epoch"
        if row is None:
            return
        if row.scale == "proxy":
            self.untracked = "a proxy's numbers are not the paper's"
            return
        try:
            log = read_log(row)
            self.curves, self.position = curves(row, log), log.position
        except LogError as error:
            self.untracked = str(error)

    def compare(self, record: dict[str, Any], measured: bool) -> dict[str, Any]:
        """Return what to add to a record: the released values at its position, and the verdict on the run.

        Means over some steps of the log (`train`) are compared with our training records, all others with our
        records of an evaluation (`measured`), because these are averaged in the same way.
        """
        added: dict[str, Any] = {}
        for key, curve in self.curves.items():
            if key not in record or (curve.record == "train") == measured:
                continue
            expected = curve.at(record[self.position])
            if expected is not None:
                memory = VerdictState(**self.memory.get(key, {}))
                memory.judge(expected, curve.error(record[key]))
                self.memory[key] = asdict(memory)
                added[f"released_{key}"] = curve.error(expected.released)
        if added:
            added["verdict"] = self.verdict
        return added

    @property
    def verdict(self) -> str | None:
        """The current verdict on the run; None before the first comparison."""
        if not self.curves or not self.memory:
            return None
        return VERDICTS[worst(VerdictState(**state).verdict for state in self.memory.values())]

    def __str__(self) -> str:
        """Return the verdict, and unless it is `on track`, the keys that it comes from."""
        if self.verdict is None or self.verdict == VERDICTS[0]:
            return self.verdict or ""
        verdicts = {key: VERDICTS[VerdictState(**state).verdict] for key, state in self.memory.items()}
        return f"{self.verdict} in {', '.join(key for key, each in verdicts.items() if each == self.verdict)}"

    def summarise(self, final: dict[str, Any] | None, best: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return how the final and best record compare with the published figures; None without a row."""
        if self.row is None:
            return None
        about = {"row": self.row.name, "table": self.row.table, "scale": self.row.scale}
        if self.row.scale == "proxy":
            return {**about, "untracked": self.untracked}
        return {
            **about,
            "verdict": self.verdict,
            "untracked": self.untracked,
            "figures": [_figure(figure, final or {}, best or {}) for figure in self.row.published],
        }


def describe(summary: dict[str, Any]) -> list[str]:
    """Return the result of Tracker.summarise as lines of text."""
    if summary["scale"] == "proxy":
        return [f"{summary['row']} as a proxy: its numbers are not the paper's, and nothing is compared"]
    lines = []
    for figure in summary["figures"]:
        ours = [
            f"{name} {value:.6g} ({value - figure['goal']:+.4g})"
            for name, value in (("best", figure["best"]), ("final", figure["final"]))
            if value is not None
        ]
        log = [
            f"{name} {figure[f'released_{name}']:.6g}"
            for name in ("best", "final")
            if figure[f"released_{name}"] is not None
        ]
        lines.append(
            f"{figure['metric']}: published {figure['published'] or 'nowhere'} {figure['unit']}, "
            f"released log {' '.join(log) or 'none'}, ours {' '.join(ours) or 'not measured'}: "
            f"{figure['verdict'] or 'no verdict'}"
        )
    curve = summary["verdict"] or f"not tracked ({summary['untracked'] or 'nothing was measured'})"
    return [*lines, f"{summary['row']}, the run against the released curve: {curve}"]


def compare_log(row: Row, log: Log) -> pd.DataFrame:
    """Compare a log with the released one of a row.

    A column is found under its name in the released log or in our records (row.track). A column known to be
    another quantity (a binary cross entropy instead of a cross entropy) is left out, and listed in
    `attrs["left_out"]` of the table.

    Returns:
        A line per record and column: position (finished epochs or steps), column, ours, released, low, high,
        verdict (so far, on this column). Values are in the unit of the released log.

    Raises:
        LogError: the released log is missing, or the two have nothing in common.
    """
    released = read_log(row)
    if released.position not in log.table:
        raise LogError(f"{log.paths[0]}: no column {released.position}, by which {row.name} is compared")
    lines: list[tuple[Any, ...]] = []
    left_out: list[str] = []
    for key, curve in curves(row, released).items():
        names = (name for name in (curve.column, key) if name in log.table)
        name = next((name for name in names if pd.api.types.is_numeric_dtype(log.table[name])), None)
        if name is None:
            continue
        unit = log.units.get(name, UNKNOWN)
        if comparable(unit, curve.unit):
            lines.extend(_compared(curve, log, name, released.position))
        else:
            left_out.append(f"{name} is not compared: it is in {unit}, the released one in {curve.unit}")
    if not lines:
        columns = ", ".join(row.track.values())
        why = "".join(f"; {each}" for each in left_out)
        raise LogError(f"{log.paths[0]}: nothing to compare with {row.name}, which has {columns}{why}")
    frame = pd.DataFrame(lines, columns=["position", "column", "ours", "released", "low", "high", "verdict"])
    frame = frame.sort_values("position", kind="stable", ignore_index=True)
    frame.attrs["left_out"] = left_out
    return frame


def verdict(frame: pd.DataFrame) -> str:
    """Return the verdict at the end of a table of compare_log."""
    numbers = {name: number for number, name in VERDICTS.items()}
    last = frame.groupby("column")["verdict"].last()
    return VERDICTS[worst(numbers[name] for name in last)]


def curves(row: Row, log: Log) -> dict[str, Curve]:
    """Return the curves of a row's released log by the key in our records, with the tolerance of siblings.

    Raises:
        LogError: row.track names no column, or one that the log lacks.
    """
    found = {key: curve(log, column, row) for key, column in row.track.items()}
    if not found:
        raise LogError(f"{row.name}: row.track names no column of the released log to compare with")
    siblings = [(other, sibling.until) for sibling in row.siblings if (other := _log_of(sibling.row))]
    for each in found.values():
        excess = [
            value
            for other, until in siblings
            for value in _excess(each, curve(other, each.column, row), until + shift(other))
        ]
        if len(excess) >= ENOUGH:
            each.tolerance = max(LEAST_TOLERANCE, float(np.quantile(excess, 0.95)))
    return found


def curve(log: Log, column: str, row: Row, record: str | None = None) -> Curve:
    """Return a column of a log as errors over finished epochs or steps.

    Args:
        record: the kind of record to take if several have the column; default: the most frequent one.

    Raises:
        LogError: the log has no such column, or the column has no number.
    """
    if column not in log.table:
        raise LogError(f"{log.paths[0]}: no column {column}; it has {', '.join(log.units)}")
    rows = log.table[np.isfinite(log.table[column].astype(float))]
    if rows.empty:
        raise LogError(f"{log.paths[0]}: no number in column {column}")
    kinds = rows["record"].value_counts()
    kind = record if record is not None and record in kinds else str(kinds.index[0])
    rows = rows[rows["record"] == kind]
    positions = rows[log.position].to_numpy(float) + shift(log)
    values = rows[column].to_numpy(float)
    unit = log.units.get(column, "")
    perfect = _perfect(column, unit, row)
    errors = values if perfect is None else perfect - values
    return Curve(column, unit, kind, positions, errors, perfect)


def nats(unit: str) -> float:
    """Return the factor that converts a unit to nats; fairseq's losses are in bits."""
    return math.log(2) if unit.startswith("bit") else 1.0


def comparable(unit: str, other: str) -> bool:
    """Return whether two units can be of one quantity: bits and nats are, and so are 2^loss and exp(loss)."""
    same = {"bits": "nats", "2^loss": "exp(loss)"}
    return same.get(unit, unit) == same.get(other, other) or any(
        each in ("", "1", UNKNOWN) or each.endswith("own") for each in (unit, other)
    )


def _compared(curve: Curve, log: Log, name: str, position: str) -> Iterator[tuple[Any, ...]]:
    """Compare a column of a log with a curve, record by record."""
    rows = log.table.dropna(subset=[position])
    kinds = rows["record"].value_counts()
    having = rows["record"][rows[name].notna()].value_counts()
    kind = curve.record if curve.record in kinds else str((having if len(having) else kinds).index[0])
    rows = rows[rows["record"] == kind]
    ours = log.format == "run"  # its records are in the units of the row
    factor = 1.0 if ours else nats(log.units.get(name, "")) / nats(curve.unit)
    memory = VerdictState()
    for place, value in zip(
        rows[position].astype(float) + shift(log, position), rows[name] * factor, strict=True
    ):
        expected = curve.at(place)
        if expected is not None:
            finding = memory.judge(expected, curve.error(value))
            low, high = sorted((curve.error(expected.low), curve.error(expected.high)))
            released = curve.error(expected.released)
            yield place, curve.column, value, released, low, high, VERDICTS[finding]


def _excess(curve: Curve, sibling: Curve, until: float) -> Iterator[float]:
    """Yield how far the errors of a sibling are outside the curve's range, relative to the range.

    Equal records do not count: runs with one seed are identical until they are first interrupted.
    """
    bare = replace(curve, tolerance=0.0)
    for position, error in zip(sibling.positions, sibling.errors, strict=True):
        expected = bare.at(position)
        if position <= until and expected is not None and error != expected.released:
            yield max(error / expected.high - 1, 1 - error / expected.low, 0.0)


def _log_of(name: str) -> Log | None:
    """Return the released log of a row, or None if it is not on this machine."""
    try:
        return read_log(load(name).row)
    except LogError:
        return None


def shift(log: Log, position: str | None = None) -> int:
    """Return the number to add to a log's epochs to get finished epochs; 0 for steps."""
    return 1 - epochs_from(log) if (position or log.position) == "epoch" else 0


def _perfect(column: str, unit: str, row: Row) -> float | None:
    """Return the best possible value of a column if higher is better, else None."""
    stated = [figure.higher_is_better for figure in row.published if figure.column == column]
    higher = stated[0] if stated else higher_is_better(column)
    return (100.0 if unit == "%" else 1.0) if higher else None


def _figure(figure: Figure, final: dict[str, Any], best: dict[str, Any]) -> dict[str, Any]:
    """Compare a published number with our best one if the best was published, else with our final one.

    All numbers are in the published unit.
    """
    ours = {name: record.get(figure.metric) for name, record in (("best", best), ("final", final))}
    counted = ours["best" if figure.shows == "best" else "final"]
    verdict = None
    if counted is not None:
        perfect = (100.0 if figure.unit == "%" else 1.0) if figure.higher_is_better else None
        error, published = (value if perfect is None else perfect - value for value in (counted, figure.goal))
        off = (error - published) / abs(published)
        verdict = "on track" if abs(off) <= TOLERANCE else "behind" if off > 0 else "ahead"
    return {
        "metric": figure.metric,
        "unit": figure.unit,
        "published": figure.value,
        "goal": figure.goal,
        "released_best": figure.best,
        "released_final": figure.final,
        **ours,
        "difference": None if counted is None else counted - figure.goal,
        "verdict": verdict,
    }
