"""Learning rates that adan_optim.transfer predicts, beside those that were tuned: one line of JSON each.

Each begins with AdamW at its tuned learning rate and weight decay.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adan_optim.transfer.noise import Noise, together
from benchmarks.comparison import todo as comparison
from benchmarks.comparison.design import COMPARISON, REFERENCE
from benchmarks.comparison.records import Record, Stage, select
from benchmarks.comparison.search import Point, Space, best
from benchmarks.comparison.todo import Job
from benchmarks.lab.design import ALL_TASKS, LAB
from benchmarks.lab.measures import best_lr
from benchmarks.lab.todo import LabJob, tuned
from repro.loading import read_lines
from repro.publish import append_line

PILOTS = (100, 400, 1000)  # steps
PILOT = 400  # the default of adan_optim.transfer, which counts
SAMPLES = 32  # gradients


@dataclass(frozen=True)
class Prediction:
    """What was predicted for Adan on a task.

    Attributes:
        task: see Search.name.
        pilot: its steps.
        like: AdamW's learning rate, that of its search.
        factor: Adan's learning rate over AdamW's.
        noise: the signal-to-noise ratio of the whole gradient at the end of the pilot.
        closed_form: the factor that the noise alone predicts.
        weight_decay: predicted for Adan.
    """

    task: str
    pilot: int
    like: float
    factor: float
    noise: float
    closed_form: float
    weight_decay: float
    environment: dict[str, Any]


def load(path: Path) -> list[Prediction]:
    """Return the predictions of a file; none if it does not exist.

    Raises:
        UserError: a line cannot be read; it is named.
    """
    return [found for _, found in read_lines(path, lambda values: Prediction(**values))]


def append(path: Path, prediction: Prediction) -> None:
    """Add a prediction."""
    append_line(path, asdict(prediction))


def total(noises: Mapping[str, Noise]) -> float:
    """Return the signal-to-noise ratio of the whole gradient."""
    return together(noises.values()).ratio


@dataclass(frozen=True)
class Search:
    """Where AdamW and Adan were tuned alike: a task of the lab, or one of the fair comparison.

    Attributes:
        name: of the task; those of the fair comparison begin with "comparison/".
        job: AdamW at its best point.
        steps: of the runs.
        ratio: Adan's best learning rate over AdamW's.
        losses: of Adan's search at its best weight decay, by learning rate.
    """

    name: str
    title: str
    job: Job
    steps: int
    ratio: float
    losses: Mapping[float, float]

    def change(self, factor: float) -> float | None:
        """Return by what share Adan's loss at a factor on AdamW's learning rate is above its best one.

        Linear over the logarithm of the learning rate, between those that were tried; None outside of these.
        """
        (octave,) = self.job.octaves
        lr = self.job.lr(octave) * factor
        below, above = ([x for x in self.losses if (x <= lr if low else x >= lr)] for low in (True, False))
        if not below or not above:
            return None
        left, right = max(below), min(above)
        share = 0.0 if left == right else math.log(lr / left) / math.log(right / left)
        loss = (1 - share) * self.losses[left] + share * self.losses[right]
        return loss / min(self.losses.values()) - 1


def searches(records: Sequence[Record], compared: Sequence[Record]) -> list[Search]:
    """Return the finished searches of the lab and of the fair comparison, from the records of each."""
    found = []
    for task, about in ALL_TASKS.items():
        losses, theirs = tuned(records, task, "adan"), tuned(records, task, REFERENCE)
        ours, other = best_lr(records, task, "adan"), best_lr(records, task, REFERENCE)
        if ours is None or other is None:
            continue
        point = best(theirs)
        job = LabJob(task, REFERENCE, "pilot", point.weight_decay, (point.octave,), (), steps=about.tuned)
        line = _line(losses, LAB.space(task, "adan"))
        found.append(Search(task, about.title, job, about.tuned, ours / other, line))
    for task, theirs_about in COMPARISON.tasks.items():
        losses, theirs = (comparison.tuned(compared, task, name) for name in ("adan", REFERENCE))
        if not losses or not theirs:
            continue
        point = best(theirs)
        job_there = comparison.Job(task, REFERENCE, "pilot", point.weight_decay, (point.octave,), ())
        about_adan = COMPARISON.space(task, "adan")
        ratio = about_adan.lr(best(losses).octave) / job_there.lr(point.octave)
        steps = max(run.steps for run in select(compared, task=task, optimizer=REFERENCE, stage=Stage.TUNE))
        line = _line(losses, about_adan)
        found.append(Search(f"comparison/{task}", theirs_about.title, job_there, steps, ratio, line))
    return found


def _line(losses: Mapping[Point, float], about: Space) -> dict[float, float]:
    decay = best(losses).weight_decay
    return {about.lr(point.octave): loss for point, loss in losses.items() if point.weight_decay == decay}


def missing(found: Sequence[Search], predictions: Sequence[Prediction]) -> list[tuple[Search, int]]:
    """Return the searches without predictions, each with the lengths of the pilots that its runs can have."""
    known = {prediction.task for prediction in predictions}
    pairs = [(search, pilot) for search in found if search.name not in known for pilot in PILOTS]
    return [(search, pilot) for search, pilot in pairs if pilot <= max(search.steps, PILOT)]


def predicted(predictions: Sequence[Prediction], task: str, pilot: int = PILOT) -> Prediction | None:
    """Return the prediction for a task with a pilot of that length, None if there is none."""
    return next((p for p in predictions if (p.task, p.pilot) == (task, pilot)), None)
