"""What the lab runs next: a function of the records alone, so that it can stop and continue anywhere.

Of a task and an optimizer: the search at the length at which it is tuned, with two seeds; the learning rate
again at the longest; the seeds of the result at every length; for the reference, the ladder; for Adan, the
experiments.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from benchmarks.comparison.design import REFERENCE, Study
from benchmarks.comparison.records import Record, Stage, select
from benchmarks.comparison.search import Point, best, next_points
from benchmarks.comparison.todo import Job
from benchmarks.lab.design import (
    ALL_TASKS,
    EXPERIMENTS,
    LAB,
    LONG,
    OPTIMIZERS,
    RUNGS,
    TUNING_SEEDS,
    LabTask,
)

AGAIN = "again"  # stage: the learning rate at the longest length
TRY = "try"  # stage, after the name of an experiment: the learning rates of a variant


@dataclass(frozen=True)
class LabJob(Job):
    """Runs of the lab that differ only in learning rate and seed.

    Attributes:
        steps: of each run.
    """

    steps: int = 0
    study: ClassVar[Study] = LAB

    @property
    def about(self) -> LabTask:
        """The task."""
        return ALL_TASKS[self.task]

    @property
    def changes(self) -> tuple[str, ...]:
        """The overrides of these runs alone."""
        return (*self.about.words(self.steps), *self.more)


def length(record: Record) -> int:
    """Return the steps that a run was to have."""
    return next(int(w.removeprefix("steps=")) for w in record.overrides if w.startswith("steps="))


def tuned(records: Sequence[Record], task: str, optimizer: str) -> dict[Point, float]:
    """Return the mean losses over the tuning seeds of the points that have all of them."""
    name = OPTIMIZERS[optimizer].of or optimizer
    losses: dict[Point, list[float]] = {}
    for run in select(records, task=task, optimizer=name, stage=Stage.TUNE):
        losses.setdefault(Point(run.octave, run.weight_decay), []).append(run.final)
    number = len(ALL_TASKS[task].tuning_seeds)
    whole = {point: of for point, of in losses.items() if len(of) == number}
    return {point: statistics.fmean(of) for point, of in whole.items()}


def again(records: Sequence[Record], task: str, optimizer: str) -> dict[int, float]:
    """Return the losses by octave at the longest length."""
    name = OPTIMIZERS[optimizer].of or optimizer
    return {run.octave: run.final for run in select(records, task=task, optimizer=name, stage=AGAIN)}


def tries(records: Sequence[Record], task: str, stage: str, variant: str, steps: int) -> dict[int, float]:
    """Return the losses by octave of a variant of an experiment at a length."""
    runs = select(records, task=task, stage=f"{stage} {TRY}", variant=variant)
    return {run.octave: run.final for run in runs if length(run) == steps}


def octave_at(records: Sequence[Record], task: str, optimizer: str, steps: int) -> int | None:
    """Return the octave of the learning rate for runs of a length; None if it is not known yet."""
    at_tuned = tuned(records, task, optimizer)
    if not at_tuned:
        return None
    centre = best(at_tuned).octave
    if 2 * steps < LONG or LONG not in ALL_TASKS[task].lengths:
        return centre
    found = again(records, task, optimizer)
    return None if _untried(found, centre) else min(sorted(found), key=found.__getitem__)


def todo(
    task: str, optimizer: str, records: Sequence[Record], longest: int = RUNGS[-1], asked: bool = True
) -> list[LabJob]:
    """Return the next jobs of an optimizer that is tuned; none if all are done.

    Args:
        longest: the most steps of a run.
        asked: with the experiments.
    """
    about, losses = ALL_TASKS[task], tuned(records, task, optimizer)
    points = next_points(LAB.space(task, optimizer), losses)
    if points and about.tuned > longest:
        return []
    if points:
        octaves: dict[float, list[int]] = {}
        for point in points:
            octaves.setdefault(point.weight_decay, []).append(point.octave)
        job = partial(LabJob, task, optimizer, Stage.TUNE, steps=about.tuned, seeds=about.tuning_seeds)
        return _missing([job(decay, tuple(of)) for decay, of in octaves.items()], records)
    decay, wanted = best(losses).weight_decay, []
    if LONG in about.lengths and longest >= LONG:
        missing = _untried(again(records, task, optimizer), best(losses).octave)
        wanted = [LabJob(task, optimizer, AGAIN, decay, tuple(missing), TUNING_SEEDS[:1], steps=LONG)]
    wanted += _results(task, optimizer, decay, records)
    if asked and optimizer == "adan" and about.ladder:
        wanted += _experiments(task, decay, records)
    return _missing([job for job in wanted if job.steps <= longest], records)


def _results(task: str, optimizer: str, decay: float, records: Sequence[Record]) -> Iterator[LabJob]:
    """Yield the runs of the result whose learning rate is known."""
    about = ALL_TASKS[task]
    lengths = RUNGS if optimizer == REFERENCE and about.ladder else about.lengths
    for steps in lengths:
        octave = octave_at(records, task, optimizer, steps)
        if octave is not None:
            for name in LAB.variants(task, optimizer):
                seeds = OPTIMIZERS[name].seeds[: about.seeds]
                yield LabJob(task, name, Stage.SEEDS, decay, (octave,), seeds, steps=steps)


def _experiments(task: str, decay: float, records: Sequence[Record]) -> Iterator[LabJob]:
    """Yield the runs of the experiments whose learning rate is known."""
    for name, asked in EXPERIMENTS.items():
        for steps in asked.lengths if task in asked.tasks else ():
            centre = octave_at(records, task, "adan", steps)
            if centre is None:
                continue
            for variant, more in asked.variants.items():
                job = partial(LabJob, task, "adan", variant=variant, more=more, steps=steps)
                octaves = tuple(centre + side for side in asked.octaves)
                found = tries(records, task, name, variant, steps)
                yield job(f"{name} {TRY}", decay, octaves, TUNING_SEEDS[:1])
                if set(octaves) <= set(found):
                    yield job(name, decay, (min(octaves, key=found.__getitem__),), asked.seeds)


def _untried(found: dict[int, float], centre: int) -> list[int]:
    """Return the octaves to try next around a centre: three, then further where an end is the best."""
    if missing := [centre + side for side in (-1, 0, 1) if centre + side not in found]:
        return missing
    least, (low, high) = min(sorted(found), key=found.__getitem__), (min(found), max(found))
    return [least - 1] if least == low else [least + 1] if least == high else []


def _missing(jobs: Sequence[LabJob], records: Sequence[Record]) -> list[LabJob]:
    """Return the runs that are not done, a job each: long ones are recorded as they end."""
    done = {(r.task, r.optimizer, r.stage, r.variant, length(r), r.octave, r.weight_decay, r.seed)
            for r in records}  # fmt: skip
    left = []
    for job in jobs:
        key = job.task, job.optimizer, job.stage, job.variant, job.steps
        for octave, seed in job.runs():
            if (*key, octave, job.weight_decay, seed) not in done:
                left.append(replace(job, octaves=(octave,), seeds=(seed,)))
    return left
