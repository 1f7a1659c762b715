"""What readers share where everybody names the values as they like: columns, kinds of record, rows."""

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
SHARED = ("epoch", "seconds")  # columns that belong to every kind of record

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
_OF_TRAINING = ("lr", "grad_norm", "loss_scale", "epoch")  # named without `train_`
_STAGED = ("loss", "ppl")  # named with it


def column(tag: str) -> str:
    """Return the common table's name for a value that was logged as `tag`; the tag itself if it has none.

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
    """The columns of one log: no two tags share one, and none takes a name the table needs itself.

    `taken` are further names that no tag gets.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._of: dict[str, str] = {}
        self._taken = ({*POSITION} - {"epoch"}) | {*taken}

    def __getitem__(self, tag: str) -> str:
        """Return the column of `tag`: its common name unless another tag has that, else its own."""
        if tag not in self._of:
            candidates = itertools.chain(
                (column(tag), tag), (f"{tag} ({count})" for count in itertools.count(2))
            )
            name = next(name for name in candidates if name not in self._taken)
            self._taken.add(name)
            self._of[tag] = name
        return self._of[tag]


class Gathering:
    """Puts together what was logged piece by piece: one row of the table for each kind of record and step."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.repeated = 0  # pieces that were there already
        self._rows: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}  # (segment, step): kind: values
        self._shared: dict[tuple[int, int], dict[str, Any]] = {}
        self._lone: Counter[tuple[int, int]] = Counter()  # lines with nothing but shared values

    def add(self, number: int, step: int, values: dict[str, float], file: int = 0) -> None:
        """Take in the piece (column: value) that stands at line or event `number`, and account for it."""
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
        """Return the log, with the units of those columns that have a known one.

        Raises:
            LogError: not one record was found.
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
        used = {name for row in reading.rows for name in row}
        log = reading.log(format, {name: UNITS[name] for name in UNITS if name in used}, config)
        log.repeated += self.repeated
        return log


def split(values: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return the values, without SHARED, by kind of record: those with `eval_` and `test_` apart."""
    pieces: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        if name not in SHARED:
            stage = name.split("_")[0]
            pieces.setdefault(stage if stage in ("eval", "test") else "train", {})[name] = value
    return pieces


def number(value: object) -> float | None:
    """Return a number as a float, None for anything else: text, true and false, integers beyond a float."""
    try:
        return None if isinstance(value, str) else source.numeric(value)
    except ValueError:
        return None


def whole(value: object) -> int | None:
    """Return a step as an int, None for what cannot be one."""
    try:
        return None if isinstance(value, str) else source.whole(value)
    except ValueError:
        return None


def flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (key, value), those of a dict as `a.b` unless it is a medium of wandb, which has a `_type`."""
    for key, value in values.items():
        if isinstance(value, dict) and "_type" not in value:
            yield from ((f"{key}.{name}", inner) for name, inner in flat(value))
        else:
            yield key, value


def find(folder: Path, pattern: str) -> list[Path]:
    """Return the files that fit `pattern` in a folder, else those of the folders up to two levels below."""
    for below in ("", "*/", "*/*/"):
        files = sorted({path.resolve(): path for path in sorted(folder.glob(below + pattern))}.values())
        if files:
            return files
    return []


def several(folder: Path, runs: list[str]) -> LogError:
    """Return the error that it is not clear which run in a folder is meant."""
    shown = ", ".join(runs[:3]) + (", ..." if len(runs) > 3 else "")
    return LogError(
        f"{folder}: {len(runs)} runs are in it ({shown}); name one of them, or the parts of one in order"
    )
