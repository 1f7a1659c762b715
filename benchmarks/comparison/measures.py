"""What the records say about an optimizer on a task.

Losses are those on validation data, lower is better. Intervals are percentile bootstraps of 95 % over seeds
(scipy.stats.bootstrap); of five seeds they are somewhat too narrow, as any bootstrap of five values is.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.stats import bootstrap

from benchmarks.comparison.design import OPTIMIZERS, REFERENCE
from benchmarks.comparison.records import Record, Stage, select
from benchmarks.comparison.search import Point, Space, best
from benchmarks.comparison.todo import space, tuned

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
    if len(values) == 1 or not math.isfinite(mean) or len(set(values)) == 1:
        return Estimate(mean, mean, mean, len(values))
    found = bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0)
    interval = found.confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), len(values))


def difference(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Return the mean of `values` minus that of `others`, with the interval of two independent samples."""
    mean = statistics.fmean(values) - statistics.fmean(others)
    number = min(len(values), len(others))
    if number == 1 or not math.isfinite(mean):
        return Estimate(mean, mean, mean, number)
    found = bootstrap(
        (values, others),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        n_resamples=RESAMPLES,
        method="percentile",
        rng=0,
    ).confidence_interval
    return Estimate(mean, float(found.low), float(found.high), number)


def finals(records: Sequence[Record], task: str, optimizer: str, stage: str = Stage.SEEDS) -> list[float]:
    """Return the last losses of a stage's runs."""
    return [record.final for record in select(records, task=task, optimizer=optimizer, stage=stage)]


def winner(records: Sequence[Record], task: str) -> str | None:
    """Return the optimizer with the smallest mean loss; None as long as there is no result."""
    losses = {name: found for name in OPTIMIZERS if (found := finals(records, task, name))}
    return min(losses, key=lambda name: statistics.fmean(losses[name]), default=None)


def target(records: Sequence[Record], task: str) -> float | None:
    """Return the loss that AdamW ends with, the median of its seeds; None as long as there is none."""
    reached = finals(records, task, REFERENCE)
    return statistics.median(reached) if reached else None


def steps_to(record: Record, loss: float) -> float:
    """Return the steps until a run's loss is at most `loss`, on a line between measurements; or infinity."""
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

    0 where most seeds never reach it; None as long as there are no runs. All runs follow their schedule to
    the end, so that a value is a lower bound of what a schedule of that length would give.
    """
    loss, runs = target(records, task), select(records, task=task, optimizer=optimizer, stage=Stage.SEEDS)
    if loss is None or not runs:
        return None
    return statistics.median(record.steps / steps_to(record, loss) for record in runs)


@dataclass(frozen=True)
class Range:
    """Learning rates whose loss is within a share of the best one's.

    Attributes:
        octaves: between the ends, by interpolation between the learning rates that were tried.
        highest: the largest of them.
        open_above: whether the highest is that of what was tried, so that the range may go on.
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
    """Return where losses, from the best one outward, pass a limit, and whether they never do."""
    for (octave, loss), (further, worse) in pairwise(line):
        if worse > limit:
            share = (limit - loss) / (worse - loss) if math.isfinite(worse) else 0.0
            return octave + share * (further - octave), False
    return float(line[-1][0]), True


def divergence(records: Sequence[Record], task: str, optimizer: str) -> tuple[int, int]:
    """Return how many runs of the first grid failed, and of how many.

    A run failed if its loss stopped being finite, or ended no lower than at its first measurement. The grid
    has a quarter, four times, ... of the start, with the first weight decay: the same for all.
    """
    about = space(task, optimizer)
    grid = {(octave, about.weight_decays[0]) for octave in (-4, -2, 0, 2, 4)}
    runs = select(records, task=task, optimizer=optimizer, stage=Stage.TUNE)
    counted = [record for record in runs if (record.octave, record.weight_decay) in grid]
    failed = [r for r in counted if math.isinf(r.final) or r.final >= r.curve[0][1]]
    return len(failed), len(counted)


def best_point(records: Sequence[Record], task: str, optimizer: str) -> Point | None:
    """Return the point that an optimizer was given, None as long as nothing was tried."""
    losses = tuned(records, task, optimizer)
    return best(losses) if losses else None


def profile(ratios: Mapping[str, Sequence[float]], at: Sequence[float]) -> dict[str, list[float]]:
    """Return performance profiles (Dolan and Moré, 2002): the share of tasks with at most each ratio of `at`.

    Args:
        ratios: by optimizer, for each task its cost over the smallest of all; infinite where it failed.
    """
    return {
        name: [sum(ratio <= limit for ratio in values) / len(values) for limit in at]
        for name, values in ratios.items()
    }


def profile_ratios(steps: Mapping[str, Mapping[str, float]], tasks: Sequence[str]) -> dict[str, list[float]]:
    """Return, by optimizer, each task's steps over the smallest of all optimizers.

    Args:
        steps: by optimizer and task; a task that is missing there counts as failed.
    """
    least = {task: min(of.get(task, math.inf) for of in steps.values()) for task in tasks}
    return {
        name: [
            of.get(task, math.inf) / least[task] if math.isfinite(least[task]) else math.inf for task in tasks
        ]
        for name, of in steps.items()
    }
