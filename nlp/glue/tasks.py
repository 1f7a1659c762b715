"""Descriptions of the nine GLUE tasks (Wang et al., arXiv 1804.07461), and of others.

Columns are found by name. A file without a header has the names of `columns`, in order.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from nlp.glue.metrics import OF_CLASSES, OF_SCORES
from nlp.glue.packages import PACKAGES
from repro.errors import UserError
from repro.reading import parse_yaml, read_bytes

DESCRIPTION = "task.yaml"  # in the folder of a task outside GLUE
KEYS = ("texts", "label", "labels", "score", "metrics", "columns", "bad_lines")  # allowed in it


@dataclass(frozen=True)
class Description:
    """A task: one or two sentences, and their class or score."""

    name: str  # of its folder
    texts: tuple[str, ...] = ()  # columns of the one or two sentences
    label: str = "label"  # column
    labels: tuple[str, ...] = ()  # names of the classes, in order; empty: those of the training file
    score: tuple[float, float] | None = None  # lowest and highest, for regression
    metrics: tuple[str, ...] = ()  # the first selects the best checkpoint; empty: accuracy, or pearson
    columns: tuple[str, ...] = ()  # of train and dev files without a header
    bad_lines: str = "refuse"  # or skip: lines with the wrong number of columns
    dev: Mapping[str, str] = field(default_factory=lambda: {"": "dev.tsv"})  # file by suffix of its metrics
    test: Mapping[str, str] = field(default_factory=dict)  # file by name of its predictions; empty: test.tsv
    index: str = "index"  # column of the test files
    hub: str | None = None  # name in nyu-mll/glue

    @property
    def tests(self) -> Mapping[str, str]:
        """The test files by the names of their predictions on the GLUE server."""
        return self.test or {self.name: "test.tsv"}


ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
MNLI_DEV = {"_matched": "dev_matched.tsv", "_mismatched": "dev_mismatched.tsv"}
MNLI_TEST = {"MNLI-m": "test_matched.tsv", "MNLI-mm": "test_mismatched.tsv", "AX": "diagnostic.tsv"}

GLUE = (
    Description(
        "CoLA", ("sentence",), labels=("0", "1"), metrics=("matthews_correlation",),
        columns=("source", "label", "mark", "sentence"), hub="cola",
    ),
    Description("SST-2", ("sentence",), labels=("0", "1"), metrics=("accuracy",), hub="sst2"),
    Description(
        "MRPC", ("#1 String", "#2 String"), "Quality", ("0", "1"), metrics=("f1", "accuracy"), hub="mrpc"
    ),
    Description("STS-B", PAIR, "score", score=(0.0, 5.0), metrics=("pearson", "spearman"), hub="stsb"),
    Description(
        # three lines of its training file lack columns and are always left out; 363,846 remain
        "QQP", ("question1", "question2"), "is_duplicate", ("0", "1"), metrics=("f1", "accuracy"),
        bad_lines="skip", index="id", hub="qqp",
    ),
    Description(
        "MNLI", PAIR, "gold_label", ("entailment", "neutral", "contradiction"), metrics=("accuracy",),
        dev=MNLI_DEV, test=MNLI_TEST, hub="mnli",
    ),
    Description("QNLI", ("question", "sentence"), labels=ENTAILMENT, metrics=("accuracy",), hub="qnli"),
    Description("RTE", PAIR, labels=ENTAILMENT, metrics=("accuracy",), hub="rte"),
    Description("WNLI", PAIR, labels=("0", "1"), metrics=("accuracy",), hub="wnli"),
)  # fmt: skip
EMBEDDED = Description("packages", ("sentence",), labels=PACKAGES, metrics=("accuracy",))  # see packages.py


def plain(name: str) -> str:
    """Return a name in the form used for comparison: SST-2, sst2 and sst_2 are the same."""
    return re.sub(r"[\W_]", "", name).lower()


def known(name: str) -> Description | None:
    """Return the GLUE or embedded task with a name, or with that of a folder NAME-more; None if unknown."""
    for task in (*GLUE, EMBEDDED):
        if plain(name) == plain(task.name) or name.lower().startswith(f"{task.name.lower()}-"):
            return task
    return None


def describe(name: str, folder: Path | None, given: Mapping[str, Any]) -> Description:
    """Return the description of a task, GLUE's or its folder's, with the keys that are `given` overridden.

    Raises:
        UserError: it is neither GLUE's nor described, or the description is inconsistent.
    """
    found = known(name)
    path = None if folder is None else folder / DESCRIPTION
    if path is not None and path.exists():
        found = replace(found or Description(name), **_from_yaml(path))
    where = f"task={name}" if path is None else f"task={name} in {folder}"
    given = {key: value for key, value in given.items() if value is not None}
    if found is None and not given:
        close = difflib.get_close_matches(plain(name), [plain(task.name) for task in GLUE], n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise UserError(
            f"{where}: is none of {', '.join(plain(task.name) for task in GLUE)}{hint} Another task needs a "
            f"{DESCRIPTION} in its folder, or data.texts=[COLUMN] or [COLUMN,COLUMN], and data.label=COLUMN"
        )
    task = replace(found or Description(name), **{key: _value(key, value) for key, value in given.items()})
    check(task, where)
    if not task.metrics:
        task = replace(task, metrics=("accuracy",) if task.score is None else ("pearson", "spearman"))
    return task


def _from_yaml(path: Path) -> dict[str, Any]:
    """Return the values in a task.yaml."""
    try:
        content = parse_yaml(read_bytes(path).decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: write key: value lines, of the keys {', '.join(KEYS)}")
    for key in content:
        if key not in KEYS:
            close = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(KEYS)}"
            raise UserError(f"{path}: {key}: no such key; {hint}")
    try:
        return {key: _value(key, value) for key, value in content.items() if value is not None}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def _value(key: str, value: Any) -> Any:
    """Return a value in the type of its field: lists as tuples, names as text."""
    kind = {item.name: item.type for item in fields(Description)}[key]
    if kind is str:
        return str(value)
    values = (value,) if isinstance(value, str | int | float) else tuple(value)
    if key == "score":
        return tuple(float(number) for number in values)
    if any(isinstance(item, bool) for item in values):  # YAML's reading of an unquoted yes or no
        raise ValueError(f'{key}: write truth values in quotes, as "yes" and "no"')
    return tuple(map(str, values))


def check(task: Description, where: str) -> None:
    """Raise UserError if a description is inconsistent."""
    if not 1 <= len(task.texts) <= 2:
        raise UserError(f"{where}: texts={list(task.texts)}: must be the names of one column, or of two")
    if task.score is not None and (len(task.score) != 2 or not task.score[0] < task.score[1]):
        raise UserError(f"{where}: score={list(task.score)}: must be the lowest score and the highest")
    if task.score is not None and task.labels:
        raise UserError(f"{where}: has both labels and score: leave one out")
    if len(task.labels) == 1 or len(set(task.labels)) < len(task.labels):
        raise UserError(f"{where}: labels={list(task.labels)}: must be at least two, each once")
    fit = OF_CLASSES if task.score is None else OF_SCORES
    for metric in task.metrics:
        if metric not in fit:
            kind = "class" if task.score is None else "score"
            raise UserError(f"{where}: metrics: {metric}: must be one of {', '.join(fit)} for a {kind}")
    if "f1" in task.metrics and len(task.labels) > 2:
        raise UserError(f"{where}: metrics: f1: is for two classes; there are more")
    if task.bad_lines not in ("refuse", "skip"):
        raise UserError(f"{where}: bad_lines={task.bad_lines}: must be refuse or skip")
    for column in (*task.texts, task.label):
        if task.columns and column not in task.columns:
            raise UserError(f"{where}: columns={list(task.columns)}: has no {column}")
