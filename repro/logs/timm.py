"""timm's `summary.csv`, with a line per epoch, and the `args.yaml` next to it.

train_loss is the mean over the logged batches (every 50th and the last), eval_loss the plain cross entropy.
timm counts epochs from 0 and repeats the header when a run is resumed into the same file. Only recent
versions have a column for the learning rate.
"""

import csv
import re
from pathlib import Path
from typing import Any

from repro.logs.log import POSITION, Format, Log, Reading
from repro.logs.source import LogError, Source, numeric, whole
from repro.reading import parse_yaml

REQUIRED = ("epoch", "train_loss")
HEADER = re.compile(r"epoch,train_loss(,eval_\w+)+(,lr)?")  # no other program writes this one
RENAMED = {"eval_prec1": "eval_top1", "eval_prec5": "eval_top5"}  # names before version 0.1.20
LINE = re.compile(r"epoch,train_loss|\d+(,-?\d+\.\d+(e[+-]?\d+)?){2,}\s*$")
UNITS = {"lr": "1", "train_loss": "the training loss's own", "eval_top1": "%", "eval_top5": "%"}
BCE = "nats per class, mean over classes"
BCE_SUM = "nats, sum over classes"
CE = "nats, against mixed and smoothed labels"
CYCLIC = ("cosine", "tanh", "poly")  # schedules that are followed by the cool-down
MIXES = ("mixup", "cutmix", "cutmix_minmax", "smoothing")  # arguments that change the labels


def matches(source: Source) -> bool:
    """Return whether the file begins with timm's header."""
    return bool(source.head) and HEADER.fullmatch(source.head[0]) is not None


def read(source: Source) -> Log:
    """Read a summary, and the arguments next to it if there are any.

    Raises:
        LogError: there is no header, or no record.
    """
    reading = Reading(source)
    columns: list[str] = []
    for number, line in reading.sound():
        try:
            cells = [cell.strip() for cell in next(csv.reader([line]))]
        except csv.Error as error:
            reading.fault(number, f"not comma-separated values ({error})")
            continue
        if all(name in cells for name in REQUIRED):  # a header
            columns = _header(reading, number, columns, cells)
        elif columns:
            _record(reading, number, columns, cells)
        else:
            reading.fault(number, f"no header with {', '.join(REQUIRED)} before it")
    args = _args_beside(reading)
    units = dict(UNITS)
    if any("eval_top1" in row for row in reading.rows):  # of classification
        units["eval_loss"] = "nats"
    if args:
        _compare(reading, args)
        units["train_loss"] = _loss(args)
    return reading.log("timm", units, args)


def _loss(args: dict[str, Any]) -> str:
    """Return the unit of the training loss of timm's script with these arguments."""
    if args.get("jsd_loss") or args.get("bce_pos_weight"):
        return UNITS["train_loss"]
    if not any({"smoothing": 0.1, **args}.get(name) for name in MIXES):
        return "nats"  # also for BCE
    if args.get("bce_loss"):
        return BCE_SUM if args.get("bce_sum") else BCE
    return CE


def _header(reading: Reading, number: int, before: list[str], cells: list[str]) -> list[str]:
    """Count a header, and return the columns that are valid from here."""
    columns = [RENAMED.get(cell, cell) for cell in cells]
    bad = {c for c in columns if (c in POSITION and c != "epoch") or columns.count(c) > 1 or not c}
    if bad:
        reading.fault(number, f"a header with columns that cannot be told apart: {', '.join(sorted(bad))!r}")
        return before
    if reading.rows:
        reading.resumed(number, "a second header")
    reading.other()
    return columns


def _record(reading: Reading, number: int, columns: list[str], cells: list[str]) -> None:
    if len(cells) != len(columns):
        reading.fault(number, f"{len(cells)} values under {len(columns)} columns")
        return
    filled = {column: cell for column, cell in zip(columns, cells, strict=True) if cell}
    missing = [name for name in REQUIRED if name not in filled]
    if missing:
        reading.fault(number, f"no {' and no '.join(missing)}")
        return
    try:
        epoch = whole(filled.pop("epoch"))
        values = {column: numeric(cell) for column, cell in filled.items()}
    except ValueError as error:
        reading.fault(number, f"not a row of numbers ({error})")
        return
    for column in ("eval_top1", "eval_top5"):
        if column in values:
            values[column] = round(values[column], 3)  # exact for 50,000 images; the rest is rounding
    reading.record(number, "epoch", {"epoch": epoch, **values})


def args_beside(summary: Path) -> Path | None:
    """Return the `args.yaml` that belongs to a `summary.csv`: `args_X.yaml` to `summary_X.csv`."""
    name = re.sub(r"^summary(.*?)\.csv(\.gz)?$", r"args\1.yaml", summary.name)
    candidates = (summary.with_name(name), summary.with_name("args.yaml"))
    return next((path for path in candidates if path != summary and path.is_file()), None)


def _args_beside(reading: Reading) -> dict[str, Any]:
    path = args_beside(reading.source.path)
    if path is None:
        return {}
    try:
        return read_args(Source(path))
    except LogError as error:
        reading.oddities.append(str(error))
        return {}


def _compare(reading: Reading, args: dict[str, Any]) -> None:
    """Remark on contradictions between log and arguments, and on arguments that change a column's meaning."""
    path = reading.source.path
    if args.get("model_ema") and not args.get("model_ema_force_cpu"):
        reading.oddities.append(f"{path}: the eval columns are those of the averaged (EMA) model")
    if args.get("sched", "cosine") not in CYCLIC or (args.get("lr_cycle_limit") or 1) != 1:
        return  # other schedules count epochs differently
    if (args.get("val_interval") or 1) != 1:
        return  # epochs without an evaluation are not in the summary
    prefix = args.get("warmup_epochs", 0) if args.get("warmup_prefix") else 0
    planned = {"": args.get("epochs"), " of warm-up": prefix, " of cool-down": args.get("cooldown_epochs", 0)}
    epochs = len({row["epoch"] for row in reading.rows})
    numbers = [count for count in planned.values() if isinstance(count, int)]
    if len(numbers) == len(planned) and epochs not in (0, sum(numbers)):
        shown = " + ".join(f"{n}{what}" for what, n in planned.items() if n or what != " of warm-up")
        reading.oddities.append(f"{path}: {epochs} epochs, where the arguments have {shown}")


def read_args(source: Source) -> dict[str, Any]:
    """Return the settings in an `args.yaml`, including unknown keys; `no_prox` is False in older files.

    Raises:
        LogError: the file is not a flat mapping with a model.
    """
    text = "\n".join(source.lines)
    try:
        args = parse_yaml(text)
    except ValueError as error:
        raise LogError(f"{source.path}: not YAML ({error})") from error
    if not isinstance(args, dict) or "model" not in args:
        raise LogError(f"{source.path}: not the arguments of a timm run (no `model: ...` in it)")
    return {"no_prox": False, **args}


FORMAT = Format("timm", "timm summary", matches, read, epochs_from=0, line=LINE)
