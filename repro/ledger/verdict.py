"""The rule by which a run is called on track, behind, ahead or diverged.

It works on an error that falls: a loss as it is, an accuracy as what it lacks to 100 %.

1. A record is on track if its error lies in the range that the released run went through nearby (within
   10 % of the position and 2 % of the whole log, at least one record on each side), widened by a tolerance:
   what siblings show, or 1.5 % of the error where a row has none.
2. Worse than that is behind, better is ahead, and diverged is an error that rose by half of what the
   released run has gained so far. A run is called so when three records in a row agree.
3. A value that is not finite is called diverged at once. Of several columns the worst counts.

The constants come from benchmarks/tracking_study.py; results/tracking says how well the rule does.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WINDOW = 0.1  # of the position: how far the range reaches to each side,
REACH = 0.02  # of the last position: but no further than this
RECORDS = 3  # in a row that must agree
TOLERANCE = 0.015  # of the error, where there are no siblings to measure it by,
LEAST_TOLERANCE = 0.01  # and at least, where there are
LOST = 0.5  # of what the released run has gained since its first record

VERDICTS = {-1: "ahead", 0: "on track", 1: "behind", 2: "diverged"}
NOT_FINITE = 3  # diverged, whatever came before


@dataclass(frozen=True)
class Range:
    """Where the error of a run on track lies at one position."""

    released: float
    low: float
    high: float
    gained: float  # by the released run since its first record


@dataclass
class Curve:
    """A column of a released log, as an error over position: finished epochs or steps."""

    column: str
    unit: str
    record: str  # kind of record that it is from: train, epoch, eval or test
    positions: "np.ndarray[Any, np.dtype[np.float64]]"  # ascending
    errors: "np.ndarray[Any, np.dtype[np.float64]]"
    perfect: float | None  # error = perfect - value; None where the value itself is the error
    tolerance: float = TOLERANCE

    def error(self, value: float) -> float:
        """Return the error that a value of this column means, or the value that an error means."""
        return value if self.perfect is None else self.perfect - value

    def at(self, position: float) -> Range | None:
        """Return what is expected at a position; None outside of the log."""
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
    """What the verdict on a column needs of its earlier records. JSON-able."""

    recent: list[int] = field(default_factory=list)  # keys of VERDICTS, newest last
    best: float | None = None  # error

    def judge(self, expected: Range, error: float) -> int:
        """Take in a record's error, and return the verdict as it is now: a key of VERDICTS."""
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
        """The mildest of the last records, if all of them are off to the same side."""
        if NOT_FINITE in self.recent[-1:]:
            return 2
        if len(self.recent) < RECORDS:
            return 0
        worst, mildest = max(self.recent), min(self.recent)
        return min(mildest, 2) if mildest > 0 else min(worst, 0)


def worst(verdicts: Iterable[int]) -> int:
    """Return the verdict on several columns: the worst; `ahead` if one is and none is worse than on track."""
    found = list(verdicts)
    return max(found, default=0) or min(found, default=0)
