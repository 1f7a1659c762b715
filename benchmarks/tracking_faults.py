"""Reruns of released curves and what can go wrong in them, for benchmarks/tracking_study.py.

A rerun is the running median of the released curve, plus the curve's own residuals, resampled from nearby in
blocks of five records, plus one shift of the log error per run, drawn from a normal distribution.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.ndimage import median_filter

from repro.ledger import verdict
from repro.ledger.rows import Row
from repro.ledger.verdict import Curve, Range, VerdictState
from repro.logs.log import Log

Array = np.ndarray[Any, np.dtype[np.float64]]
Errors = dict[str, Array]  # of a run, by column: [records], at the positions of the released log
BLOCK = 5  # records


@dataclass
class Case:
    """A row with its released curves."""

    row: Row
    log: Log
    curves: dict[str, Curve]

    def __post_init__(self) -> None:
        self.length = max(float(curve.positions[-1]) for curve in self.curves.values())
        self.events = sorted(  # the records of all columns, in the order in which a run reaches them
            (position, key, index)
            for key, curve in self.curves.items()
            for index, position in enumerate(curve.positions)
        )
        self.expected: dict[str, list[Range]] = {
            key: [found for p in curve.positions if (found := curve.at(p)) is not None]
            for key, curve in self.curves.items()
        }

    def with_tolerance(self, tolerance: float) -> "Case":
        """Return the same row with one tolerance for all columns."""
        return Case(self.row, self.log, {k: replace(c, tolerance=tolerance) for k, c in self.curves.items()})

    def verdicts(self, errors: Errors) -> Iterator[tuple[float, int]]:
        """Yield each position and the verdict there on a run with these errors."""
        memories = {key: VerdictState() for key in self.curves}
        for position, records in itertools.groupby(self.events, key=lambda event: event[0]):
            for _, key, index in records:
                if index < len(errors[key]):
                    memories[key].judge(self.expected[key][index], float(errors[key][index]))
            yield position, verdict.worst(memory.verdict for memory in memories.values())

    def alarm(self, errors: Errors, since: float = 0.0, least: int = 1) -> float | None:
        """Return the position of the first alarm at or after `since`, None if there is none."""
        return next((p for p, found in self.verdicts(errors) if p >= since and found >= least), None)


def rerun(case: Case, random: np.random.Generator, spread: float) -> Errors:
    """Return the errors of a run that differs from the released one by chance alone.

    Args:
        spread: standard deviation of the shift, as a share of the error.
    """
    shift = spread * random.normal()
    errors = {}
    for key, curve in case.curves.items():
        logs = np.log(np.maximum(curve.errors, 1e-9))
        trend = median_filter(logs, 5, mode="nearest")
        trend[:3] = logs[:3]
        count = len(logs)
        drawn = np.arange(count)
        for begin in range(0, count, BLOCK):
            reach = max(3, begin // 10)
            drawn[begin : begin + BLOCK] += random.integers(-reach, reach + 1)
        noise = (logs - trend)[np.clip(drawn, 0, count - 1)]
        highest = np.inf if curve.perfect is None else curve.perfect
        errors[key] = np.minimum(np.exp(trend + noise + shift), highest)
    return errors


Change = Callable[[Curve, Array, int], Array]  # of a column: curve, errors, index of the fault's first record


def slower(by: float) -> Change:
    """Return a change: the run needs `by` (a share) longer to reach the same point."""
    return lambda curve, errors, _: np.interp(curve.positions / (1 + by), curve.positions, errors)


def lower(points: float) -> Change:
    """Return a change: accuracies end `points` lower, and proportionally less before; losses stay."""
    return lambda curve, errors, _: errors if curve.perfect is None else errors + points * _progress(curve)


def higher(share: float) -> Change:
    """Return a change: losses end higher by `share`, and proportionally less before; accuracies stay."""
    return lambda curve, errors, _: (
        errors * (1 + share * _progress(curve)) if curve.perfect is None else errors
    )


def _progress(curve: Curve) -> Array:
    """Return the share of its whole gain that the released run has made, [records], 0 to 1."""
    best = np.minimum.accumulate(curve.errors)
    gained: Array = best[0] - best
    return gained / max(gained[-1], 1e-9)


def jump(_: Curve, errors: Array, begin: int) -> Array:
    """Raise errors by 30 %, which fade over as many records as came before."""
    fade = np.clip(1 - np.arange(len(errors) - begin) / max(begin, 1), 0, 1)
    errors[begin:] *= 1 + 0.3 * fade
    return errors


def plateau(_: Curve, errors: Array, begin: int) -> Array:
    """Stop all progress, as when labels are noise that cannot be learned."""
    errors[begin:] = np.maximum(errors[begin:], np.median(errors[max(0, begin - 5) : begin + 1]))
    return errors


def collapse(_: Curve, errors: Array, begin: int) -> Array:
    """Return to the first error."""
    errors[begin:] = errors[0]
    return errors


def not_a_number(_: Curve, errors: Array, begin: int) -> Array:
    """Turn errors into NaN."""
    errors[begin:] = np.nan
    return errors


@dataclass(frozen=True)
class Fault:
    """A way in which a run goes wrong."""

    name: str
    change: Change
    since: float = 0.0  # share of the run
    least: int = 1  # the mildest verdict that counts as a detection
    needs: str = "any"  # any | accuracy | loss: the kind of column that it changes

    def concerns(self, case: Case) -> bool:
        """Return whether a row has columns that the fault changes."""
        kinds = {"loss" if curve.perfect is None else "accuracy" for curve in case.curves.values()}
        return self.needs == "any" or self.needs in kinds

    def disturb(self, case: Case, errors: Errors) -> Errors:
        """Return the errors of a run with this fault; `errors` stays as it is."""
        begin = self.since * case.length
        return {
            key: self.change(curve, errors[key].copy(), int(np.searchsorted(curve.positions, begin)))
            for key, curve in case.curves.items()
        }


FAULTS = [
    *(Fault(f"{100 * by:g} % slower", slower(by)) for by in (0.1, 0.2, 0.3)),
    *(Fault(f"accuracy {p:g} points lower", lower(p), needs="accuracy") for p in (0.5, 1, 2, 5)),
    *(Fault(f"losses {100 * s:g} % higher", higher(s), needs="loss") for s in (0.01, 0.02, 0.05, 0.1)),
    Fault("errors jump by 30 % after 30 %", jump, 0.3),
    Fault("no progress after 30 %", plateau, 0.3),
    Fault("collapse after 50 %, as diverged", collapse, 0.5, 2),
    Fault("NaN after 50 %, as diverged", not_a_number, 0.5, 2),
]
