"""Measures of the lab, from its records: multipliers and their trend, best learning rates, the power."""

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.comparison.design import REFERENCE
from benchmarks.comparison.measures import Estimate, finals_by_seed, multiplier_on, multipliers
from benchmarks.comparison.records import Record, Stage, select
from benchmarks.comparison.search import Space, best, next_points
from benchmarks.lab.design import ALL_TASKS, LAB, RUNGS, SEEDS
from benchmarks.lab.todo import again, length, tuned

POWER = 3.72  # quantiles .975 and .8 of Student's t with four degrees of freedom, added: 80 % power at 5 %


def finals(
    records: Sequence[Record],
    task: str,
    optimizer: str,
    steps: int,
    stage: str = Stage.SEEDS,
    variant: str = "",
) -> dict[int, float]:
    """Return the last losses of runs of a length, by seed."""
    runs = select(records, task=task, optimizer=optimizer, stage=stage, variant=variant)
    return finals_by_seed(run for run in runs if length(run) == steps)


def ladder(records: Sequence[Record], task: str, steps: int) -> dict[float, dict[int, float]]:
    """Return the reference's losses by length, as a factor of `steps`, where all seeds are finished."""
    found = {rung / steps: finals(records, task, REFERENCE, rung) for rung in RUNGS}
    return {factor: losses for factor, losses in found.items() if set(losses) >= set(SEEDS)}


def multiplier(records: Sequence[Record], task: str, optimizer: str, steps: int) -> Estimate | None:
    """Return the step multiplier of an optimizer in runs of a length; None without its runs or a ladder."""
    own, rungs = finals(records, task, optimizer, steps), ladder(records, task, steps)
    return multiplier_on(own, rungs) if own and 1.0 in rungs else None


def trend(records: Sequence[Record], task: str, optimizer: str) -> Estimate | None:
    """Return the factor by which the multiplier grows from a run to one four times as long.

    The slope of its logarithm over that of the length, by least squares, for all samples of the seeds. A
    length at which it is beyond the ladder tells no slope; a sample that is counts as the ladder's end. None
    with fewer than two lengths.
    """
    found = {
        steps: each.mean
        for steps in ALL_TASKS[task].lengths
        if (each := multiplier(records, task, optimizer, steps)) is not None and 0 < each.mean < math.inf
    }
    if len(found) < 2:
        return None
    lengths = list(found)
    own = {steps: finals(records, task, optimizer, steps) for steps in lengths}
    rungs = {steps: ladder(records, task, steps) for steps in lengths}
    seeds = sorted(set.intersection(*(set(of) for of in own.values())))
    samples = np.array([multipliers(own[steps], rungs[steps], seeds) for steps in lengths])
    ends = np.array([(min(rungs[steps]), max(rungs[steps])) for steps in lengths])
    logs = np.log(np.clip(samples, ends[:, :1], ends[:, 1:]))
    times = np.log(lengths) / math.log(4)
    centred = times - times.mean()
    slopes = np.exp(centred @ logs / (centred @ centred))
    low, high = np.percentile(slopes, (2.5, 97.5))
    middle = float(np.exp(centred @ np.log([*found.values()]) / (centred @ centred)))
    return Estimate(middle, float(low), float(high), len(seeds))


def least_multiplier(records: Sequence[Record], task: str, optimizer: str, steps: int) -> float | None:
    """Return the least multiplier above 1 that a paired test of all seeds sees, four times of five.

    From the spread of the differences to the reference, and the slope of its ladder around the length. None
    without the runs, or where the ladder does not fall.
    """
    own, rungs = finals(records, task, optimizer, steps), ladder(records, task, steps)
    beside = [factor for factor in rungs if 0.5 <= factor <= 2]
    seeds = sorted(set(own).intersection(*(rungs[factor] for factor in beside)))
    if len(seeds) < 2 or len(beside) < 2 or 1.0 not in rungs:
        return None
    spread = statistics.stdev(own[seed] - rungs[1.0][seed] for seed in seeds)
    first, last = (statistics.fmean(rungs[factor].values()) for factor in (beside[0], beside[-1]))
    slope = (first - last) / math.log(beside[-1] / beside[0])
    return math.exp(POWER * spread / math.sqrt(len(seeds)) / slope) if slope > 0 else None


def best_lr(records: Sequence[Record], task: str, optimizer: str) -> float | None:
    """Return the best learning rate of the search, interpolated: the minimum of a parabola over octaves.

    The parabola is through the best point and its neighbours, at its weight decay. Without both neighbours,
    the best learning rate that was tried. None if the search is
    not finished.
    """
    losses = tuned(records, task, optimizer)
    if not losses or next_points(LAB.space(task, optimizer), losses):
        return None
    found = best(losses)
    line = {point.octave: loss for point, loss in losses.items() if point.weight_decay == found.weight_decay}
    return _lowest(line, found.octave, LAB.space(task, optimizer))


def best_lr_again(records: Sequence[Record], task: str, optimizer: str) -> float | None:
    """Return the same of the longest runs."""
    found = again(records, task, optimizer)
    octave = min(sorted(found), key=found.__getitem__, default=0)
    return _lowest(found, octave, LAB.space(task, optimizer)) if found else None


def _lowest(line: Mapping[int, float], octave: int, about: Space) -> float:
    below, above = (line.get(octave + side, math.nan) for side in (-1, 1))
    curvature = below + above - 2 * line[octave]
    shift = (below - above) / (2 * curvature) if math.isfinite(curvature) and curvature > 0 else 0.0
    return float(about.start * 2.0 ** (octave + shift))


def change(values: Mapping[int, float], others: Mapping[int, float]) -> Estimate | None:
    """Return the mean paired difference of losses over the seeds of both, with a t interval, as a share.

    The share is of the mean of `others`. None if fewer than two seeds are common.
    """
    seeds = sorted(set(values) & set(others))
    if len(seeds) < 2:
        return None
    base = statistics.fmean(others[seed] for seed in seeds)
    return paired([(values[seed] - others[seed]) / base for seed in seeds])


def paired(differences: Sequence[float]) -> Estimate:
    """Return the mean of at least two differences, one a seed, with a t interval."""
    number, mean = len(differences), statistics.fmean(differences)
    half = _student(number - 1) * statistics.stdev(differences) / math.sqrt(number)
    return Estimate(mean, mean - half, mean + half, number)


def least_change(found: Estimate) -> float:
    """Return the least mean that a paired test of as many seeds tells from 0, four times of five.

    Args:
        found: of `paired`.
    """
    freedom = found.number - 1
    return (found.high - found.low) / 2 * (1 + _student(freedom, 0.8) / _student(freedom))


def _student(freedom: int, quantile: float = 0.975) -> float:
    from scipy.stats import t

    return float(t.ppf(quantile, freedom))
