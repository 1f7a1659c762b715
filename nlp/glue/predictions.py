"""Predictions of a finished run: for the GLUE server, and of the development set to read.

RUN/predictions/<task>.tsv       index and prediction of each test example, as gluebenchmark.com takes it
RUN/predictions/dev<suffix>.tsv  index, prediction and label of each example of the development set
"""

from collections.abc import Sequence

from nlp.glue.data import Examples
from nlp.glue.tasks import Description

FOLDER = "predictions"
LONGEST = 100  # characters shown of a sentence in the summary


def table(task: Description, part: Examples, given: Sequence[str]) -> str:
    """Return the content of a file of predictions, with the labels if they are known."""
    columns = {"index": part.index, "prediction": given}
    if part.labels is not None:
        columns["label"] = [shown(task, label) for label in part.labels]
    rows = zip(*columns.values(), strict=True)
    return "".join("\t".join(row) + "\n" for row in [tuple(columns), *rows])


def shown(task: Description, value: float) -> str:
    """Return a prediction or a label as written in the task's files; scores are clipped to their range."""
    if task.score is None:
        return task.labels[int(value)]
    return f"{min(max(float(value), task.score[0]), task.score[1]):.3f}"


def line(task: Description, texts: Sequence[str], prediction: float, label: float) -> str:
    """Return an example with its prediction, as a line of the summary."""
    given, truth = shown(task, prediction), shown(task, label)
    short = [text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..." for text in texts]
    verdict = "" if task.score is not None else "right  " if given == truth else "WRONG  "
    return f"{verdict}{given} (label {truth}): {' | '.join(short)}"
