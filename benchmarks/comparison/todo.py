"""What to run next: a function of the records alone, so that a sweep can stop and continue anywhere."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import ClassVar

from benchmarks.comparison.design import (
    COMPARISON,
    EXPERIMENTS,
    FEWER,
    LADDER,
    OPTIMIZERS,
    REFERENCE,
    TUNING_SEED,
    Optimizer,
    Study,
    Task,
)
from benchmarks.comparison.records import Record, Stage, select
from benchmarks.comparison.search import Point, best, next_points


@dataclass(frozen=True)
class Job:
    """Runs that differ only in learning rate and seed: one multirun of Hydra."""

    task: str
    optimizer: str
    stage: str
    weight_decay: float
    octaves: tuple[int, ...]
    seeds: tuple[int, ...]
    variant: str = ""
    more: tuple[str, ...] = ()
    study: ClassVar[Study] = COMPARISON

    @property
    def about(self) -> Task:
        """The task."""
        return self.study.tasks[self.task]

    @property
    def method(self) -> Optimizer:
        """The optimizer, or its variant."""
        return self.study.optimizers[self.optimizer]

    @property
    def changes(self) -> tuple[str, ...]:
        """The overrides of these runs alone."""
        return self.more

    @property
    def words(self) -> list[str]:
        """Return the overrides that its runs share; the last one of each key counts."""
        words = [
            f"+{self.study.name}={self.about.config or self.task}",
            f"optimizer={self.method.of or self.optimizer}",
            *self.about.overrides,
            *self.method.overrides,
            f"optimizer.weight_decay={self.weight_decay:g}",
            *self.changes,
        ]
        return list({word.partition("=")[0]: word for word in words}.values())

    def lr(self, octave: int) -> float:
        """Return the learning rate at an octave."""
        return self.study.space(self.task, self.optimizer).lr(octave)

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield the octave and the seed of each run."""
        return product(self.octaves, self.seeds)


def tuned(records: Sequence[Record], task: str, optimizer: str) -> dict[Point, float]:
    """Return the losses of an optimizer's search."""
    name = OPTIMIZERS[optimizer].of or optimizer
    found = select(records, task=task, optimizer=name, stage=Stage.TUNE)
    return {Point(record.octave, record.weight_decay): record.final for record in found}


def untuned(task: str, optimizer: str) -> Point:
    """Return the point of somebody who tunes nothing: the start, with the first weight decay."""
    return Point(0, COMPARISON.space(task, optimizer).weight_decays[0])


def todo(task: str, optimizer: str, records: Sequence[Record]) -> list[Job]:
    """Return the next jobs of an optimizer that is tuned; none if all are done."""
    losses = tuned(records, task, optimizer)
    if points := next_points(COMPARISON.space(task, optimizer), losses):
        octaves: dict[float, list[int]] = {}
        for point in points:
            octaves.setdefault(point.weight_decay, []).append(point.octave)
        job = partial(Job, task, optimizer, Stage.TUNE, seeds=(TUNING_SEED,))
        return [job(decay, tuple(of)) for decay, of in octaves.items()]
    done = {(r.optimizer, r.stage, r.variant, r.seed) for r in records if r.task == task}
    jobs = []
    for after in _after(task, optimizer, best(losses)):
        known = after.optimizer, after.stage, after.variant
        if seeds := tuple(seed for seed in after.seeds if (*known, seed) not in done):
            jobs.append(replace(after, seeds=seeds))
    return jobs


def _after(task: str, optimizer: str, point: Point) -> Iterator[Job]:
    """Yield what follows a search that ended at a point."""
    about = COMPARISON.tasks[task]
    job = partial(Job, task, weight_decay=point.weight_decay, octaves=(point.octave,))
    for name in COMPARISON.variants(task, optimizer):
        seeds = OPTIMIZERS[name].seeds
        yield job(name, Stage.SEEDS, seeds=seeds if about.length else seeds[:2])
        if about.length:
            yield job(name, Stage.HALF, seeds=seeds[: len(seeds) // 2 + 1], more=about.length.words(0.5))
    if optimizer == REFERENCE and about.length:
        for factor in (factor for factor in LADDER if factor not in (0.5, 1.0)):  # all run these
            more = about.length.words(factor)
            yield job(optimizer, Stage.LADDER, seeds=FEWER, variant=f"{factor:g}", more=more)
    if OPTIMIZERS[optimizer].rival and (first := untuned(task, optimizer)) != point:
        seeds = OPTIMIZERS[optimizer].seeds
        yield Job(task, optimizer, Stage.UNTUNED, first.weight_decay, (first.octave,), seeds)
    if optimizer == "adan":
        for name, experiment in EXPERIMENTS.items():
            if task in experiment.tasks:
                for variant, more in experiment.variants.items():
                    yield job(optimizer, name, seeds=experiment.seeds, variant=variant, more=more)
