"""The rule by which a run is called on track, behind, ahead or diverged.

It compares errors, which fall: a loss as it is, an accuracy as its distance from 100 %.

1. A record is on track if its error is in the range of the released run nearby (within 10 % of the position
   and 2 % of the whole log, at least one record on each side), widened by a tolerance: that of the siblings,
   or 1.5 % of the error for a row without any.
2. A worse record is behind, a better one ahead. It is diverged if its error has risen by half of what the
   released run has gained so far. A run gets one of these verdicts when three records in a row agree.
3. A value that is not finite is diverged at once. The worst of several columns counts.

The constants come from benchmarks/tracking_study.py; results/tracking reports how well the rule works.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WINDOW = 0.1  # reach of the range to each side, relative to the position,
REACH = 0.02  # and at most this, relative to the last position
RECORDS = 3  # number of records in a row that must agree
TOLERANCE = 0.015  # relative to the error, for rows without siblings
LEAST_TOLERANCE = 0.01  # for rows with siblings
LOST = 0.5  # relative to what the released run has gained since its first record

VERDICTS = {-1: "ahead", 0: "on track", 1: "behind", 2: "diverged"}
NOT_FINITE = 3  # a finding: diverged, whatever came before


@dataclass(frozen=True)
class Range:
    """The errors at one position that count as on track."""

    released: float
    low: float
    high: float
    gained: float  # by the released run since its first record


@dataclass
class Curve:
    """A column of a released log, as an error over position: finished epochs or steps."""

    column: str
    unit: str
    record: str  # kind of record: train, epoch, eval or test
    positions: "np.ndarray[Any, np.dtype[np.float64]]"  # [records], ascending
    errors: "np.ndarray[Any, np.dtype[np.float64]]"  # [records]
    perfect: float | None  # error = perfect - value; None: the value is the error
    tolerance: float = TOLERANCE

    def error(self, value: float) -> float:
        """Convert a value of this column to an error, or an error to a value."""
        return value if self.perfect is None else self.perfect - value

    def at(self, position: float) -> Range | None:
        """Return the expected range at a position, or None outside the log."""
        if not self.positions[0] <= position <= self.positions[-1]:
            return None
        half = min(WINDOW * position, REACH * self.positions[-1])
        before = np.searchsorted(self.positions, position, "left") - 1
        after = np.searchsorted(self.positions, position, "right")
        first = min(np.searchsorted(self.positions, position - half, "left"), max(before, 0))
        last = max(np.searchsorted(self.positions, position + half, "right"), after + 1)
        nearby = self.errors[first:last]
        return Range(
            float(np.interp(position, self.positions, self.errors)),
            float(nearby.min()) * (1 - self.tolerance),
            float(nearby.max()) * (1 + self.tolerance),
            float(self.errors[0] - self.errors[:last].min()),
        )


@dataclass
class VerdictState:
    """The earlier records of a column as far as its verdict depends on them; JSON-able."""

    recent: list[int] = field(default_factory=list)  # keys of VERDICTS, newest last
    best: float | None = None  # error

    def judge(self, expected: Range, error: float) -> int:
        """Add the error of a record and return the current verdict, a key of VERDICTS."""
        best = error if self.best is None else self.best
        if not math.isfinite(error):
            finding = NOT_FINITE
        elif error > max(expected.high, best + LOST * expected.gained):
            finding = 2
        elif error > expected.high:
            finding = 1
        else:
            finding = -1 if error < expected.low else 0
        if math.isfinite(error):
            self.best = min(best, error)
        self.recent = [*self.recent, finding][-RECORDS:]
        return self.verdict

    @property
    def verdict(self) -> int:
        """The mildest finding of the last records if all are off to the same side, else on track."""
        if NOT_FINITE in self.recent[-1:]:
            return 2
        if len(self.recent) < RECORDS:
            return 0
        worst, mildest = max(self.recent), min(self.recent)
        return min(mildest, 2) if mildest > 0 else min(worst, 0)


def worst(verdicts: Iterable[int]) -> int:
    """Return the worst verdict of several columns; `ahead` if one is and none is worse than on track."""
    found = list(verdicts)
    return max(found, default=0) or min(found, default=0)
