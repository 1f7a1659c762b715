"""Measures of an optimizer on a task, from the records.

Losses are those on validation data; lower is better. Intervals are percentile bootstraps of 95 % over seeds
(those of scipy.stats.bootstrap, whose import takes a second). With five seeds they are
somewhat too narrow, as is any bootstrap of five values.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison.design import COMPARISON, LADDER, OPTIMIZERS, REFERENCE
from benchmarks.comparison.records import Record, Stage, select
from benchmarks.comparison.search import Point, Space, best
from benchmarks.comparison.todo import tuned, untuned

RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its interval; the interval of a single value is that value."""

    mean: float
    low: float
    high: float
    number: int

    def format(self, form: str = ".4g") -> str:
        """Return it as text."""
        if self.number == 1 or not math.isfinite(self.mean):
            return format(self.mean, form)
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of values and its bootstrap interval."""
    mean = statistics.fmean(values)
    if len(set(values)) == 1 or not math.isfinite(mean):
        return Estimate(mean, mean, mean, len(values))
    return Estimate(mean, *_interval((values,), np.mean), len(values))


def difference(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Return the mean of `values` minus that of `others`, with the interval of two independent samples."""
    mean = statistics.fmean(values) - statistics.fmean(others)
    number = min(len(values), len(others))
    if number == 1 or not math.isfinite(mean):
        return Estimate(mean, mean, mean, number)
    interval = _interval((values, others), lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis))
    return Estimate(mean, *interval, number)


def _interval(samples: Sequence[Sequence[float]], statistic: Callable[..., Any]) -> tuple[float, float]:
    """Return the ends of a statistic's bootstrap interval."""
    rng = np.random.default_rng(0)
    drawn = [np.array(x)[rng.integers(0, len(x), (RESAMPLES, len(x)))] for x in samples]
    low, high = np.percentile(statistic(*drawn, axis=-1), (2.5, 97.5))
    return float(low), float(high)


def finals(records: Sequence[Record], task: str, optimizer: str, stage: str = Stage.SEEDS) -> list[float]:
    """Return the last losses of a stage's runs."""
    return [record.final for record in select(records, task=task, optimizer=optimizer, stage=stage)]


def untuned_finals(records: Sequence[Record], task: str, optimizer: str) -> list[float]:
    """Return the last losses of the runs with the seeds of the result, at the point of no tuning."""
    point = untuned(task, optimizer)
    runs = select(
        records, task=task, optimizer=optimizer, octave=point.octave, weight_decay=point.weight_decay
    )
    return [run.final for run in runs if run.stage in (Stage.SEEDS, Stage.UNTUNED)]


def winner(records: Sequence[Record], task: str) -> str | None:
    """Return the optimizer with the smallest mean loss; None if there is no result yet."""
    losses = {name: found for name in OPTIMIZERS if (found := finals(records, task, name))}
    return min(losses, key=lambda name: statistics.fmean(losses[name]), default=None)


def target(records: Sequence[Record], task: str) -> float | None:
    """Return AdamW's final loss, the median of its seeds; None if there is none yet."""
    reached = finals(records, task, REFERENCE)
    return statistics.median(reached) if reached else None


def steps_to(record: Record, loss: float) -> float:
    """Return the steps until a run's loss is at most `loss`, interpolated linearly; or infinity."""
    before: tuple[int, float] | None = None
    for step, value in record.curve:
        if value <= loss:
            if before is None or value == before[1]:
                return step
            share = (before[1] - loss) / (before[1] - value)
            return before[0] + share * (step - before[0])
        before = (step, value) if math.isfinite(value) else None
    return math.inf


def speed_up(records: Sequence[Record], task: str, optimizer: str) -> float | None:
    """Return AdamW's steps over those until AdamW's final loss is reached: the median over seeds.

    0 if most seeds never reach it; None if there are no runs yet. All runs follow their schedule to the end,
    so a value is a lower bound on what a shorter schedule would give.
    """
    loss, runs = target(records, task), select(records, task=task, optimizer=optimizer, stage=Stage.SEEDS)
    if loss is None or not runs:
        return None
    return statistics.median(record.steps / steps_to(record, loss) for record in runs)


def multiplier(records: Sequence[Record], task: str, optimizer: str) -> Estimate | None:
    """Return the steps after which AdamW ends at an optimizer's final loss, over the optimizer's own.

    AdamW's runs of several lengths, each with a schedule of its length, are the ladder; between two lengths
    the mean loss is interpolated over the logarithm of the steps. All means are over the same seeds, and the
    interval is over all samples of these with replacement. 0: AdamW's shortest runs end lower already;
    infinity: its longest ones do not. None if runs of the ladder or the optimizer are missing.
    """
    own = finals_by_seed(select(records, task=task, optimizer=optimizer, stage=Stage.SEEDS))
    lengths = {Stage.HALF: 0.5, Stage.SEEDS: 1.0}
    rungs: dict[float, dict[int, float]] = {length: {} for length in LADDER}
    for run in select(records, task=task, optimizer=REFERENCE):
        if run.stage in (*lengths, Stage.LADDER):
            rungs[lengths.get(Stage(run.stage)) or float(run.variant)][run.seed] = run.final
    return multiplier_on(own, rungs)


def finals_by_seed(runs: Iterable[Record]) -> dict[int, float]:
    """Return the last losses of runs by their seeds."""
    return {run.seed: run.final for run in runs}


def multiplier_on(own: Mapping[int, float], rungs: Mapping[float, Mapping[int, float]]) -> Estimate | None:
    """Return the length at which the reference ends at an optimizer's loss; see multiplier.

    Args:
        own: losses of the optimizer by seed.
        rungs: those of the reference, by growing length, that of the optimizer being 1.
    """
    seeds = sorted(set(own).intersection(*rungs.values()))
    if not seeds:
        return None
    drawn = np.sort(multipliers(own, rungs, seeds))
    low, high = (float(drawn[round(share * (len(drawn) - 1))]) for share in (0.025, 0.975))
    whole = float(_multipliers(own, rungs, seeds, np.arange(len(seeds))[None])[0])
    return Estimate(whole, low, high, len(seeds))


def multipliers(
    own: Mapping[int, float], rungs: Mapping[float, Mapping[int, float]], seeds: Sequence[int]
) -> NDArray[np.float64]:
    """Return the multipliers [samples] of all samples of the seeds with replacement, in a fixed order."""
    number = len(seeds)
    drawn = np.indices((number,) * number).reshape(number, -1).T
    return _multipliers(own, rungs, seeds, drawn)


def _multipliers(
    own: Mapping[int, float],
    rungs: Mapping[float, Mapping[int, float]],
    seeds: Sequence[int],
    drawn: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the multipliers [samples] of samples of seeds, given as their places [samples, seeds]."""

    def means(losses: Mapping[int, float]) -> NDArray[np.float64]:
        return np.array([losses[seed] for seed in seeds])[drawn].mean(axis=1)

    return _reached(np.array([*rungs]), np.stack([means(of) for of in rungs.values()]), means(own))


def in_times(found: Estimate, ladder: Sequence[float] = LADDER) -> str:
    """Return a multiplier and its interval in words; beyond the ladder, as a bound."""
    mean, low, high = (
        f"< {ladder[0]:g}" if not value else f"> {ladder[-1]:g}" if math.isinf(value) else f"{value:.2f}"
        for value in (found.mean, found.low, found.high)
    )
    return mean if low == mean == high else f"{mean} ({low} to {high})"


def _reached(
    lengths: NDArray[np.float64], ladder: NDArray[np.float64], losses: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the lengths [samples] at which a ladder's losses are first at most `losses`; see multiplier.

    Args:
        lengths: growing [rungs].
        ladder: the losses of each length [rungs, samples].
        losses: [samples].
    """
    below = ladder <= losses
    first, samples = below.argmax(axis=0), np.arange(len(losses))
    before = np.maximum(first - 1, 0)
    high, low = ladder[before, samples], ladder[first, samples]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(np.isfinite(high), (high - losses) / (high - low), 1.0)
        found = lengths[before] * (lengths[first] / lengths[before]) ** share
    return np.where(below.any(axis=0), np.where(first == 0, 0.0, found), np.inf)


@dataclass(frozen=True)
class Range:
    """Learning rates whose loss is within a share of the best one's.

    Attributes:
        octaves: width of the range, interpolated between the learning rates that were tried.
        highest: the largest learning rate.
        open_above: whether that is the largest one tried, so that the range may go on.
    """

    octaves: float
    highest: float
    open_above: bool


def tolerated(losses: Mapping[Point, float], space: Space, share: float) -> Range:
    """Return the range around the best point, at its weight decay, within `share` of its loss."""
    found = best(losses)
    line = sorted((p.octave, loss) for p, loss in losses.items() if p.weight_decay == found.weight_decay)
    limit = losses[found] + share * abs(losses[found])
    centre = [octave for octave, _ in line].index(found.octave)
    right, right_open = _end(line[centre:], limit)
    left, _ = _end(line[centre::-1], limit)
    return Range(right - left, space.start * 2**right, right_open)


def _end(line: Sequence[tuple[int, float]], limit: float) -> tuple[float, bool]:
    """Return the octave where losses, from the best one outward, pass a limit, and whether they never do."""
    for (octave, loss), (further, worse) in pairwise(line):
        if worse > limit:
            share = (limit - loss) / (worse - loss) if math.isfinite(worse) else 0.0
            return octave + share * (further - octave), False
    return float(line[-1][0]), True


def divergence(records: Sequence[Record], task: str, optimizer: str) -> tuple[int, int]:
    """Return the number of failed runs of the first grid, and of all its runs.

    A run failed if its loss became infinite or NaN, or ended no lower than at its first measurement. Of the
    full grids only what the others have is counted: every second octave, with the first weight decay.
    """
    about = COMPARISON.space(task, optimizer)
    octaves = about.octaves[::2] if about.full else about.octaves
    grid = {(octave, about.weight_decays[0]) for octave in octaves}
    runs = select(records, task=task, optimizer=optimizer, stage=Stage.TUNE)
    counted = [record for record in runs if (record.octave, record.weight_decay) in grid]
    failed = [r for r in counted if math.isinf(r.final) or r.final >= r.curve[0][1]]
    return len(failed), len(counted)


def best_point(records: Sequence[Record], task: str, optimizer: str) -> Point | None:
    """Return the best point of an optimizer's search, None if nothing was tried yet."""
    losses = tuned(records, task, optimizer)
    return best(losses) if losses else None
