"""Learning rates that adan_optim.transfer predicts for the tasks of the lab: one line of JSON each.

Each begins with AdamW at its tuned learning rate and weight decay.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adan_optim.transfer.noise import Noise, together
from benchmarks.comparison.design import REFERENCE
from benchmarks.comparison.records import Record
from benchmarks.comparison.search import best
from benchmarks.lab.design import ALL_TASKS
from benchmarks.lab.todo import LabJob, space, tuned
from repro.loading import read_lines
from repro.publish import append_line

PILOTS = (100, 400, 1000)  # steps
PILOT = 400  # the default of adan_optim.transfer, which counts
SAMPLES = 32  # gradients


@dataclass(frozen=True)
class Prediction:
    """What was predicted for Adan on a task.

    Attributes:
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


def missing(
    records: Sequence[Record], predictions: Sequence[Prediction], tasks: Sequence[str]
) -> list[LabJob]:
    """Return AdamW's best points of the tasks for which there are no predictions yet."""
    known = {prediction.task for prediction in predictions}
    found = []
    for task in tasks:
        if task not in known and (losses := tuned(records, task, REFERENCE)):
            point, steps = best(losses), ALL_TASKS[task].tuned
            found.append(
                LabJob(task, REFERENCE, "pilot", point.weight_decay, (point.octave,), (), steps=steps)
            )
    return found


def predicted(predictions: Sequence[Prediction], task: str, pilot: int = PILOT) -> Prediction | None:
    """Return the prediction for a task with a pilot of that length, None if there is none."""
    return next((p for p in predictions if (p.task, p.pilot) == (task, pilot)), None)


def loss_at(records: Sequence[Record], task: str, optimizer: str, lr: float) -> float | None:
    """Return the loss of a search at a learning rate, at its best weight decay, by interpolation.

    Linear over the logarithm of the learning rate, between those that were tried; None outside of these.
    """
    losses = tuned(records, task, optimizer)
    if not losses:
        return None
    decay = best(losses).weight_decay
    line = {point.octave: loss for point, loss in losses.items() if point.weight_decay == decay}
    return _between(line, math.log2(lr / space(task, optimizer).start))


def _between(line: Mapping[int, float], octave: float) -> float | None:
    below = [o for o in line if o <= octave]
    above = [o for o in line if o >= octave]
    if not below or not above:
        return None
    left, right = max(below), min(above)
    share = 0.0 if left == right else (octave - left) / (right - left)
    return (1 - share) * line[left] + share * line[right]
