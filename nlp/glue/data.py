"""The examples of a task: from a folder in GLUE's layout, from the Hugging Face hub, or embedded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nlp.config.glue import GlueDataConfig
from nlp.glue import packages, tasks, tsv
from nlp.glue.tasks import Description
from nlp.glue.tsv import Table
from repro.errors import UserError
from repro.reading import printable

SPLITS = "train.tsv, dev.tsv and, for predictions, test.tsv"


@dataclass(frozen=True)
class Examples:
    """Sentences, or pairs of them, with their labels."""

    texts: list[tuple[str, ...]]
    labels: np.ndarray | None  # [examples]: numbers of classes, int64, or scores, float64; None: unknown
    index: list[str]  # identifiers, for the files of predictions

    def __len__(self) -> int:
        return len(self.texts)

    def pick(self, places: Sequence[int]) -> "Examples":
        """Return the examples at these places."""
        labels = None if self.labels is None else self.labels[list(places)]
        return Examples([self.texts[i] for i in places], labels, [self.index[i] for i in places])


@dataclass(frozen=True)
class TaskData:
    """A task and its examples."""

    task: Description  # its labels are complete
    train: Examples
    dev: dict[str, Examples]  # by the suffix of their metrics
    test: dict[str, Examples]  # by the name of their predictions; may be empty


def read(name: str, config: GlueDataConfig) -> TaskData:
    """Read a task.

    Raises:
        UserError: the task is unknown, or its data are missing or malformed.
    """
    given = {key: getattr(config, key) for key in tasks.KEYS}
    if config.root is not None:
        folder = find(name, Path(config.root).expanduser())
        found = from_folder(tasks.describe(name, folder, given), folder)
    elif tasks.known(name) == tasks.EMBEDDED:
        found = from_sentences(*packages.make())
    else:
        found = from_hub(tasks.describe(name, None, given), config.hub)
    for suffix, examples in found.dev.items():
        if examples.texts == found.train.texts:
            raise UserError(f"task={name}: the dev{suffix} split is a copy of the training split")
    return found


def find(name: str, root: Path) -> Path:
    """Return the folder of a task: `root`, or the one in it with that name.

    Raises:
        UserError: there is none, or there are two.
    """
    if not root.is_dir():
        wanted = f"that of a task, with {SPLITS}, or of several"
        raise UserError(f"data.root={root}: no such folder; name {wanted}")
    below = [path for path in sorted(root.iterdir()) if path.is_dir()]
    similar = [path for path in below if tasks.plain(path.name) == tasks.plain(name)]
    found = [path for path in similar if path.name == name] or similar
    if len(found) > 1:
        both = f"both {found[0].name} and {found[1].name}"
        raise UserError(f"data.root={root}: {both} are {name}; name one of them")
    if found:
        return found[0]
    if any(root.glob("*.tsv")):
        return root
    names = ", ".join(path.name for path in below) or "none"
    raise UserError(f"data.root={root}: has no folder {name} and no tsv files; folders there: {names}")


def from_folder(task: Description, folder: Path) -> TaskData:
    """Read the files of a task."""
    _require(folder, ["train.tsv", *task.dev.values()])
    skip = task.bad_lines == "skip"
    needed = (*task.texts, task.label)
    train = tsv.read(folder / "train.tsv", needed, task.columns, skip)
    if task.score is None and not task.labels:
        task = replace(task, labels=_classes(train, task.label))
        tasks.check(task, f"task={task.name} in {folder}")
    dev = {suffix: tsv.read(folder / file, needed, task.columns, skip) for suffix, file in task.dev.items()}
    test = {
        name: tsv.read(folder / file, task.texts, task.columns, skip)
        for name, file in task.tests.items()
        if (folder / file).exists()
    }
    for table in (train, *dev.values(), *test.values()):
        if table.skipped:
            print(
                f"{printable(table.path)}: left out {len(table.skipped)} line(s) with the wrong number of "
                f"columns, the first of them line {table.skipped[0]}"
            )
    return TaskData(
        task,
        _examples(train, task),
        {suffix: _examples(table, task) for suffix, table in dev.items()},
        {name: _examples(table, task, test=True) for name, table in test.items()},
    )


def _require(folder: Path, files: Sequence[str]) -> None:
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        there = ", ".join(sorted(path.name for path in folder.glob("*.tsv"))) or "no tsv files"
        raise UserError(f"{folder}: {' and '.join(missing)} missing; there is {there}. Get the whole task")


def _classes(train: Table, label: str) -> tuple[str, ...]:
    """Return the classes in a training file, sorted."""
    found = sorted(set(train.column(label)))
    if len(found) < 2:
        raise UserError(f"{train.path}: all labels are {found[0]!r}; a task needs two classes at least")
    if 2 * len(found) > len(train) and len(train) > 4:
        raise UserError(
            f"{train.path}: column {label!r} has {len(found)} values in {len(train)} examples; "
            "is it a score? Then set data.score=[MIN,MAX]"
        )
    return tuple(found)


def _examples(table: Table, task: Description, test: bool = False) -> Examples:
    texts = list(zip(*(table.column(name) for name in task.texts), strict=True))
    index = table.column(task.index) if task.index in table.columns else list(map(str, range(len(table))))
    labels: np.ndarray | None = None
    if task.label in table.columns and not (test and not _any_valid(table, task)):
        labels = _scores(table, task) if task.score is not None else _numbers(table, task)
    return Examples(texts, labels, index)


def _any_valid(table: Table, task: Description) -> bool:
    """Tell whether a test file's labels are known; some files have a placeholder, such as -1, throughout."""
    cells = set(table.column(task.label))
    return len(cells) > 1 or (task.score is None and bool(cells & set(task.labels)))


def _numbers(table: Table, task: Description) -> np.ndarray:
    number = {label: place for place, label in enumerate(task.labels)}
    cells = table.column(task.label)
    for row, cell in enumerate(cells):
        if cell not in number:
            known = ", ".join(map(repr, task.labels))
            raise table.error(row, f"{task.label} {cell!r} is none of {known}; correct or drop the line")
    return np.array([number[cell] for cell in cells])


def _scores(table: Table, task: Description) -> np.ndarray:
    assert task.score is not None
    lowest, highest = task.score
    values = []
    for row, cell in enumerate(table.column(task.label)):
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not lowest <= value <= highest:
            what = "is no number" if math.isnan(value) else "is out of range"
            must = f"must lie in {lowest:g} to {highest:g}: correct or drop the line"
            raise table.error(row, f"{task.label} {cell!r} {what}; {must}")
        values.append(value)
    return np.array(values)


def from_sentences(train: list[tuple[str, int]], dev: list[tuple[str, int]]) -> TaskData:
    """Return the embedded task, of sentences with the numbers of their classes."""

    def examples(pairs: list[tuple[str, int]]) -> Examples:
        index = [str(place) for place in range(len(pairs))]
        return Examples([(text,) for text, _ in pairs], np.array([label for _, label in pairs]), index)

    return TaskData(tasks.EMBEDDED, examples(train), {"": examples(dev)}, {})


def from_hub(task: Description, hub: str | None) -> TaskData:
    """Load a GLUE task with the `datasets` library: from the hub, its cache, or a folder.

    Raises:
        UserError: it cannot be loaded, or is not the expected data set.
    """
    where = f"data.root is not set, and data.hub={hub}"
    cure = f"set data.root=PATH to a folder with {SPLITS}"
    if hub is None or task.hub is None:
        raise UserError(f"task={task.name}: data.root is not set; {cure}")
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded: Any = datasets.load_dataset(hub, task.hub)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: {task.hub} cannot be loaded ({reason}); {cure}") from error
    try:
        parts = {split: _of_hub(loaded[split], task) for split in loaded}
        dev = {suffix: parts[f"validation{suffix}"] for suffix in task.dev}
        test = {
            name: replace(parts[split], labels=None)
            for name, file in task.tests.items()
            if (split := file.removesuffix(".tsv")) in parts
        }
        return TaskData(task, parts["train"], dev, test)
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"data.hub={hub}: its {task.hub} is not GLUE's: it lacks {error}; {cure}") from error


HUB_TEXTS = {"MRPC": ("sentence1", "sentence2"), "MNLI": ("premise", "hypothesis")}


def _of_hub(split: Any, task: Description) -> Examples:
    """Return a split; the numbers of its classes are GLUE's, and `labels` is in the same order."""
    columns = HUB_TEXTS.get(task.name, task.texts)
    texts = list(zip(*(split[name][:] for name in columns), strict=True))
    kind = np.float64 if task.score is not None else np.int64
    labels = np.array(split["label"][:], dtype=kind)
    names = getattr(split.features["label"], "names", None)
    if names is not None and not task.labels[0].isdigit() and tuple(names) != task.labels:
        raise KeyError(f"classes {', '.join(task.labels)} (it has {', '.join(names)})")
    return Examples(texts, labels, [str(number) for number in split["idx"][:]])
