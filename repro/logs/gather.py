"""Shared by readers of logs with free names: columns, kinds of record, rows."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

from repro.logs import source
from repro.logs.log import POSITION, Log, LogError, Reading

UNITS = {
    "lr": "1",
    "train_loss": "the training loss's own",
    "eval_loss": "the evaluation loss's own",
    "test_loss": "the test loss's own",
    "grad_norm": "L2 norm",
    "seconds": "s since the process started",
    "eval_runtime": "s",
    "eval_samples_per_second": "samples/s",
    "eval_steps_per_second": "batches/s",
}
SHARED = ("epoch", "seconds")  # columns of every kind of record

STAGES = {
    "train": "train",
    "training": "train",
    "eval": "eval",
    "evaluation": "eval",
    "val": "eval",
    "valid": "eval",
    "validation": "eval",
    "test": "test",
}
_NAMES = {
    "learning_rate": "lr",
    "perplexity": "ppl",
    "gnorm": "grad_norm",
    "gradient_norm": "grad_norm",
    "acc1": "top1",
    "acc5": "top5",
    "acc@1": "top1",
    "acc@5": "top5",
}
_STAGE = "|".join(STAGES)
_BEFORE = re.compile(rf"(?P<stage>{_STAGE})[/_.](?P<name>.+)", re.IGNORECASE)  # train/loss, val_loss
_AFTER = re.compile(rf"(?P<name>.+)/(?P<stage>{_STAGE})", re.IGNORECASE)  # Loss/train
_OF_TRAINING = ("lr", "grad_norm", "loss_scale", "epoch")  # columns without the prefix `train_`
_STAGED = ("loss", "ppl")  # columns with it


def column(tag: str) -> str:
    """Return the column of the common table for a value logged as `tag`, or the tag itself if it has none.

    `loss`, `train/loss` and `Loss/train` are train_loss; `val_loss` and `eval/loss` eval_loss;
    `learning_rate` and `train/lr` lr; `eval/accuracy` eval_accuracy.
    """
    match = _BEFORE.fullmatch(tag) or _AFTER.fullmatch(tag)
    stage = STAGES[match["stage"].lower()] if match else "train"
    name = match["name"] if match else tag
    name = _NAMES.get(name.lower(), name.lower() if name.lower() in (*_OF_TRAINING, *_STAGED) else name)
    if stage != "train":
        return f"{stage}_{name}"
    if name in _OF_TRAINING:
        return name
    return f"train_{name}" if name in _STAGED else tag


class Columns:
    """The columns of one log by tag; no two tags share one.

    Args:
        taken: further names that no tag gets, in addition to those of the table itself.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._of: dict[str, str] = {}
        self._taken = ({*POSITION} - {"epoch"}) | {*taken}

    def __getitem__(self, tag: str) -> str:
        """Return the column of `tag`: its common name, or its own if another tag has that."""
        if tag not in self._of:
            candidates = itertools.chain(
                (column(tag), tag), (f"{tag} ({count})" for count in itertools.count(2))
            )
            name = next(name for name in candidates if name not in self._taken)
            self._taken.add(name)
            self._of[tag] = name
        return self._of[tag]


class Gathering:
    """Combines values that were logged separately: one row of the table per kind of record and step."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.repeated = 0  # pieces with a value that was already there
        self._rows: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}  # (segment, step): kind: values
        self._shared: dict[tuple[int, int], dict[str, Any]] = {}
        self._lone: Counter[tuple[int, int]] = Counter()  # lines with shared values only

    def add(self, number: int, step: int, values: dict[str, float], file: int = 0) -> None:
        """Add the values by column of line or event `number`, and count the line."""
        at = (self.reading.segment, step)
        pieces = split(values)
        shared = {name: value for name, value in values.items() if name in SHARED}
        self._shared.setdefault(at, {}).update(shared)
        if shared and not pieces:
            self._lone[at] += 1
        else:
            self.reading.lines["record" if pieces else "other"] += 1
        for kind, piece in pieces.items():
            row = self._rows.setdefault(at, {}).setdefault(kind, {"file": file, "line": number})
            self.repeated += not piece.keys().isdisjoint(row)
            row.update(piece)

    def log(self, format: str, config: dict[str, Any] | None = None) -> Log:
        """Return the log, with the known units of its columns.

        Raises:
            LogError: there is no record.
        """
        reading = self.reading
        for at, count in self._lone.items():
            reading.lines["record" if at in self._rows else "other"] += count
        for (reading.segment, step), kinds in sorted(self._rows.items(), key=itemgetter(0)):
            for kind, row in kinds.items():
                file, line = row.pop("file"), row.pop("line")
                values = {"step": step, **self._shared[reading.segment, step], **row}
                reading.record(line, kind, values, same_line=True)
                reading.rows[-1]["file"] = file
        if self.repeated:
            reading.oddities.append(
                f"{reading.source.path}: {self.repeated} values were logged again for their step: "
                "the last one is kept"
            )
        log = reading.log(format, UNITS, config)
        log.repeated += self.repeated
        return log


def split(values: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return the values other than SHARED by kind of record: eval, test (by prefix) or train."""
    pieces: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        if name not in SHARED:
            stage = name.split("_")[0]
            pieces.setdefault(stage if stage in ("eval", "test") else "train", {})[name] = value
    return pieces


def number(value: object) -> float | None:
    """Return a number as a float, or None for texts, booleans and integers too large for a float."""
    try:
        return None if isinstance(value, str) else source.numeric(value)
    except ValueError:
        return None


def whole(value: object) -> int | None:
    """Return a step as an int, or None for anything else."""
    try:
        return None if isinstance(value, str) else source.whole(value)
    except ValueError:
        return None


def flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (key, value), nested ones as `a.b`; media of wandb, which have a `_type`, stay whole."""
    for key, value in values.items():
        if isinstance(value, dict) and "_type" not in value:
            yield from ((f"{key}.{name}", inner) for name, inner in flat(value))
        else:
            yield key, value


def find(folder: Path, pattern: str) -> list[Path]:
    """Return the files in a folder that match `pattern`, or else those one, or else two levels below."""
    for below in ("", "*/", "*/*/"):
        files = sorted({path.resolve(): path for path in sorted(folder.glob(below + pattern))}.values())
        if files:
            return files
    return []


def several(folder: Path, runs: list[str]) -> LogError:
    """Return the error for a folder with several runs."""
    shown = ", ".join(runs[:3]) + (", ..." if len(runs) > 3 else "")
    return LogError(
        f"{folder}: {len(runs)} runs are in it ({shown}); name one of them, or the parts of one in order"
    )
