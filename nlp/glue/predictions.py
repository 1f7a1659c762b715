"""Predictions of a finished run: for the GLUE server, and of the development set for people.

RUN/predictions/<task>.tsv       index and prediction of each test example, as gluebenchmark.com takes it
RUN/predictions/dev<suffix>.tsv  index, prediction and label of each example of the development set
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from nlp.glue.data import Examples
from nlp.glue.encode import Encoded
from nlp.glue.tasks import Description
from repro.interop import read_weights
from repro.train.run_folder import write_atomically

if TYPE_CHECKING:
    from nlp.finetune_glue import Finetuning

FOLDER = "predictions"
LONGEST = 100  # characters of a sentence in the summary


def write(task: "Finetuning", run: Path) -> None:
    """Write the predictions of a run's best checkpoint into its folder."""
    model = task.build_model().eval()
    model.load_state_dict(read_weights(run)[0])
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    model.to(device or torch.device("cpu"))
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    files = [(f"dev{suffix}", part) for suffix, part in task.dev.items()] + list(task.test.items())
    for name, part in tqdm(files, desc="predictions", unit="file", leave=False, disable=None):
        given = task.predictions(model, Encoded([part], task.start.coder, name))
        write_atomically(folder / f"{name}.tsv", table(task.task, part, [shown(task.task, x) for x in given]))


def table(task: Description, part: Examples, given: Sequence[str]) -> str:
    """Return a file of predictions, with the labels where they are known."""
    columns = {"index": part.index, "prediction": given}
    if part.labels is not None:
        columns["label"] = [shown(task, label) for label in part.labels]
    rows = zip(*columns.values(), strict=True)
    return "".join("\t".join(row) + "\n" for row in [tuple(columns), *rows])


def shown(task: Description, value: float) -> str:
    """Return a prediction or a label as the task's files have it; scores within their range."""
    if task.score is None:
        return task.labels[int(value)]
    return f"{min(max(float(value), task.score[0]), task.score[1]):.3f}"


def line(task: Description, texts: Sequence[str], prediction: float, label: float) -> str:
    """Return an example with its prediction, in a line of the summary."""
    given, truth = shown(task, prediction), shown(task, label)
    short = [text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..." for text in texts]
    verdict = "" if task.score is not None else "right  " if given == truth else "WRONG  "
    return f"{verdict}{given} (label {truth}): {' | '.join(short)}"
