"""What is missing in the lab and how long it takes, said before anything runs."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adan_optim.text import aligned
from benchmarks.comparison.records import Record, select
from benchmarks.lab.design import ALL_TASKS, LAB, LENGTHS, SEEDS, TASKS, TUNING_SEEDS
from benchmarks.lab.measures import least_multiplier
from benchmarks.lab.todo import LabJob, length, todo
from repro.hardware import show_time


@dataclass(frozen=True)
class Missing:
    """The runs that are missing in a cell, if searches end where they begin."""

    task: str
    optimizer: str
    runs: int
    steps: int
    seconds: float


def missing(
    records: Sequence[Record],
    tasks: Sequence[str],
    optimizers: Sequence[str],
    longest: int,
    asked: bool,
) -> list[Missing]:
    """Return what is missing in each cell: the jobs of `todo` if all new losses are above the known ones."""
    found = []
    for task, optimizer in LAB.cells(tasks, optimizers):
        jobs = list(_all_jobs(task, optimizer, records, longest, asked))
        runs = [(job.steps, len(list(job.runs()))) for job in jobs]
        steps = sum(each * number for each, number in runs)
        found.append(
            Missing(
                task, optimizer, sum(number for _, number in runs), steps,
                steps * _seconds(records, task, optimizer),
            )
        )  # fmt: skip
    return found


def describe(records: Sequence[Record], found: Sequence[Missing], jobs: int) -> str:
    """Return the budget as a table with its sum, and the power."""
    rows = [
        [each.task, each.optimizer, f"{each.runs}", f"{each.steps:,}", show_time(each.seconds / 3600)]
        for each in found
        if each.runs
    ]
    hours = sum(each.seconds for each in found) / 3600
    head = ["task", "optimizer", "runs", "steps", "one core"]
    lines = ["\n".join(aligned([head, *rows], right=head[2:], rule=True))] if rows else []
    lines.append(
        f"{sum(each.runs for each in found):,} runs, {show_time(hours)} of one core"
        + (f", {show_time(hours / jobs)} with --jobs {jobs}" if jobs > 1 else "")
        + ", if the searches end where they begin."
    )
    power = [
        f"{ALL_TASKS[task].title}, {steps:,} steps: {least:.2f}"
        for task in TASKS
        for steps in LENGTHS
        if (least := least_multiplier(records, task, "adan", steps)) is not None
    ]
    what = "; ".join(power) or "not known before AdamW and Adan have run"
    lines.append(
        f"Least step multiplier of Adan that {len(SEEDS)} paired seeds tell from 1, four times of five: "
        f"{what}."
    )
    return "\n\n".join(lines)


def _all_jobs(
    task: str, optimizer: str, records: Sequence[Record], longest: int, asked: bool
) -> Iterator[LabJob]:
    """Yield the jobs until nothing is left to do, each with losses worse than all known ones."""
    known = select(records, task=task)
    while jobs := todo(task, optimizer, known, longest, asked):
        for job in jobs:
            yield job
            known += [_worse(job, octave, seed, known) for octave, seed in job.runs()]


def _worse(job: LabJob, octave: int, seed: int, known: Sequence[Record]) -> Record:
    """Return the record of a run that ends above all of its stage, more so the further from their best."""
    runs = [
        run for run in select(known, optimizer=job.optimizer, stage=job.stage) if run.seed in TUNING_SEEDS
    ]
    centre = min(runs, key=lambda run: run.final).octave if runs else 0
    worst = max((run.final for run in runs), default=0.0)
    return Record(
        task=job.task, optimizer=job.optimizer, stage=job.stage, variant=job.variant, octave=octave,
        lr=job.lr(octave), weight_decay=job.weight_decay, seed=seed, overrides=tuple(job.words),
        config_hash="", curve=(), final=worst + (octave - centre) ** 2 + 1.0, test={}, steps=job.steps,
        diverged=None, parameters=0, state_bytes=0, seconds=0.0, environment={},
    )  # fmt: skip


def _seconds(records: Sequence[Record], task: str, optimizer: str) -> float:
    """Return the seconds of a step: the median of the cell's runs, or what the design says."""
    rates = [
        run.seconds / length(run) for run in select(records, task=task, optimizer=optimizer) if run.seconds
    ]
    return statistics.median(rates) if rates else ALL_TASKS[task].seconds
