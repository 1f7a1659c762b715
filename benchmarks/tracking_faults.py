"""Reruns of released curves and what can go wrong in them, for benchmarks/tracking_study.py.

A rerun is the curve's running median, with the curve's own residuals drawn again (in blocks of five records,
from nearby) and everything shifted, per run, by a share of the error that is normal with a given spread.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from repro.ledger import verdict
from repro.ledger.rows import Row
from repro.ledger.verdict import Curve, Range, VerdictState
from repro.logs.log import Log

Array = np.ndarray[Any, np.dtype[np.float64]]
Errors = dict[str, Array]  # of a run: by column, at the released log's positions
BLOCK = 5  # records


@dataclass
class Case:
    """A row with its released curves."""

    row: Row
    log: Log
    curves: dict[str, Curve]

    def __post_init__(self) -> None:
        self.length = max(float(curve.positions[-1]) for curve in self.curves.values())
        self.events = sorted(  # all records of all columns in the order in which a run comes to them
            (position, key, index)
            for key, curve in self.curves.items()
            for index, position in enumerate(curve.positions)
        )
        self.expected: dict[str, list[Range]] = {
            key: [found for p in curve.positions if (found := curve.at(p)) is not None]
            for key, curve in self.curves.items()
        }

    def with_tolerance(self, tolerance: float) -> "Case":
        """The same row under another tolerance for all columns."""
        return Case(self.row, self.log, {k: replace(c, tolerance=tolerance) for k, c in self.curves.items()})

    def verdicts(self, errors: Errors) -> Iterator[tuple[float, int]]:
        """The verdict on a run with these errors, position by position."""
        memories = {key: VerdictState() for key in self.curves}
        last = self.events[0][0]
        for position, key, index in self.events:
            if position != last:
                yield last, verdict.worst(memory.verdict for memory in memories.values())
                last = position
            if index < len(errors[key]):
                memories[key].judge(self.expected[key][index], float(errors[key][index]))
        yield last, verdict.worst(memory.verdict for memory in memories.values())

    def alarm(self, errors: Errors, since: float = 0.0, least: int = 1) -> float | None:
        """The position of the first alarm at or after `since`, None if there is none."""
        return next((p for p, found in self.verdicts(errors) if p >= since and found >= least), None)


def rerun(case: Case, random: np.random.Generator, spread: float) -> Errors:
    """The errors of a run like the released one except for chance."""
    shift = spread * random.normal()
    errors = {}
    for key, curve in case.curves.items():
        logs, trend = np.log(np.maximum(curve.errors, 1e-9)), _trend(curve)
        count = len(logs)
        drawn = np.arange(count)
        for begin in range(0, count, BLOCK):
            reach = max(3, begin // 10)
            drawn[begin : begin + BLOCK] += random.integers(-reach, reach + 1)
        noise = (logs - trend)[np.clip(drawn, 0, count - 1)]
        errors[key] = _bounded(curve, np.exp(trend + noise + shift))
    return errors


def _trend(curve: Curve) -> Array:
    """The logarithm of the errors, smoothed by a running median; the first records as they are."""
    logs = np.log(np.maximum(curve.errors, 1e-9))
    padded = np.pad(logs, 2, mode="edge")
    trend = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1)
    trend[:3] = logs[:3]
    return trend


def _bounded(curve: Curve, errors: Array) -> Array:
    return errors if curve.perfect is None else np.minimum(errors, curve.perfect)


def slower(by: float) -> Callable[[Case, Errors], Errors]:
    """A run that takes that much longer to come to the same point."""

    def disturb(case: Case, errors: Errors) -> Errors:
        return {
            key: np.interp(curve.positions / (1 + by), curve.positions, errors[key])
            for key, curve in case.curves.items()
        }

    return disturb


def lower(points: float) -> Callable[[Case, Errors], Errors]:
    """A run whose accuracy lacks so many points in the end, and proportionally less before; losses alike."""

    def disturb(case: Case, errors: Errors) -> Errors:
        return {
            key: errors[key] + (0 if curve.perfect is None else points * _progress(curve))
            for key, curve in case.curves.items()
        }

    return disturb


def higher(share: float) -> Callable[[Case, Errors], Errors]:
    """A run whose losses are that much higher in the end, and proportionally less before; accuracy alike."""

    def disturb(case: Case, errors: Errors) -> Errors:
        return {
            key: errors[key] * (1 + (share * _progress(curve) if curve.perfect is None else 0))
            for key, curve in case.curves.items()
        }

    return disturb


def _progress(curve: Curve) -> Array:
    """How much of what it gains in all the released run has gained, 0 to 1."""
    best = np.minimum.accumulate(curve.errors)
    gained: Array = best[0] - best
    return gained / max(gained[-1], 1e-9)


def after(share: float, change: Callable[[Array, int], Array]) -> Callable[[Case, Errors], Errors]:
    """A run in which something happens after that share of it: `change` gets the errors and the index."""

    def disturb(case: Case, errors: Errors) -> Errors:
        return {
            key: change(errors[key].copy(), int(np.searchsorted(curve.positions, share * case.length)))
            for key, curve in case.curves.items()
        }

    return disturb


def jump(errors: Array, index: int) -> Array:
    """Errors 30 % up, coming down again over as many records as there were before."""
    fade = np.clip(1 - np.arange(len(errors) - index) / max(index, 1), 0, 1)
    errors[index:] *= 1 + 0.3 * fade
    return errors


def plateau(errors: Array, index: int) -> Array:
    """No progress any more, as where labels are noise that cannot be learned."""
    errors[index:] = np.maximum(errors[index:], np.median(errors[max(0, index - 5) : index + 1]))
    return errors


def collapse(errors: Array, index: int) -> Array:
    """Back to where it began."""
    errors[index:] = errors[0]
    return errors


def not_a_number(errors: Array, index: int) -> Array:
    """NaN from there on."""
    errors[index:] = np.nan
    return errors


@dataclass(frozen=True)
class Fault:
    """A way in which a run goes wrong."""

    name: str
    disturb: Callable[[Case, Errors], Errors]
    since: float = 0.0  # share of the run
    least: int = 1  # verdict that counts
    needs: str = "any"  # any | accuracy | loss: columns without which it would change nothing

    def concerns(self, case: Case) -> bool:
        """Whether a row has columns that it changes."""
        kinds = {"loss" if curve.perfect is None else "accuracy" for curve in case.curves.values()}
        return self.needs == "any" or self.needs in kinds


FAULTS = [
    *(Fault(f"{100 * by:g} % slower", slower(by)) for by in (0.1, 0.2, 0.3)),
    *(Fault(f"accuracy {p:g} points lower", lower(p), needs="accuracy") for p in (0.5, 1, 2, 5)),
    *(Fault(f"losses {100 * s:g} % higher", higher(s), needs="loss") for s in (0.01, 0.02, 0.05, 0.1)),
    Fault("errors jump by 30 % after 30 %", after(0.3, jump), 0.3),
    Fault("no progress after 30 %", after(0.3, plateau), 0.3),
    Fault("collapse after 50 %, as diverged", after(0.5, collapse), 0.5, 2),
    Fault("NaN after 50 %, as diverged", after(0.5, not_a_number), 0.5, 2),
]
