"""Records of runs that never were, from a loss as a function of what a run is."""

import math
from collections.abc import Callable

from benchmarks.comparison.design import COMPARISON, OPTIMIZERS
from benchmarks.comparison.records import Record
from benchmarks.comparison.search import Space
from benchmarks.comparison.todo import Job, todo

Loss = Callable[[Job, int, int], float]  # of the job, an octave and a seed; the loss at the end
STEPS = 100
SPACE = Space(1e-3, (0.05, 0.0, 0.5), budget=16)


def record(job: Job, octave: int, seed: int, loss: float) -> Record:
    """Return a run whose loss falls linearly from 3 to `loss`."""
    steps = round(STEPS * length(job))
    points = [(steps * i // 10, 3 + (loss - 3) * i / 10) for i in range(1, 11)]
    return Record(
        task=job.task,
        optimizer=job.optimizer,
        stage=job.stage,
        variant=job.variant,
        octave=octave,
        lr=job.lr(octave),
        weight_decay=job.weight_decay,
        seed=seed,
        overrides=(*job.words, f"optimizer.lr={job.lr(octave):g}"),
        config_hash="0" * 12,
        curve=tuple(points) if math.isfinite(loss) else (),
        final=loss,
        test={},
        steps=steps,
        diverged=None if math.isfinite(loss) else 7,
        parameters=1000,
        state_bytes=8000,
        seconds=10.0,
        environment={
            "commit": "c" * 40,
            "machine": "a machine",
            "threads": 1,
            "torch": "2.14.1",
            "time": "2026-11-22T00:00:00+0000",
        },
    )


def length(job: Job) -> float:
    """Return the length of a job's runs, as a factor of the task's."""
    return float(job.variant) if job.stage == "ladder" else 0.5 if job.stage == "half" else 1.0


def bowl(job: Job, octave: int, seed: int) -> float:
    """Return a loss with the best octave 1; Adan is ahead, Prodigy-Adan next; a shorter run is worse."""
    ahead = 0.1 if job.optimizer.startswith("adan") else 0.09 * (job.optimizer == "prodigy_adan")
    decay = 0.0 if job.weight_decay in (0.05, 1e-4, 5e-4) else 0.02
    later = -0.02 * math.log2(length(job))
    return 1 - ahead + 0.01 * (octave - 1) ** 2 + decay + later + 0.001 * seed


def sweep(
    tasks: list[str], loss: Loss = bowl, optimizers: list[str] | None = None, most: float = math.inf
) -> list[Record]:
    """Return the records that benchmarks/sweep.py would collect, at most `most`."""
    records: list[Record] = []
    for pair in COMPARISON.cells(tasks, optimizers or list(OPTIMIZERS)):
        while jobs := todo(*pair, records):
            for job in jobs:
                for octave, seed in job.runs():
                    if len(records) >= most:
                        return records
                    records.append(record(job, octave, seed, loss(job, octave, seed)))
    return records


ALL = list(COMPARISON.tasks)
