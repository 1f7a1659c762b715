"""timm's `summary.csv`, a line an epoch, and the `args.yaml` beside it.

train_loss is the mean over the logged batches (every 50th and the last), eval_loss the plain cross entropy.
timm counts epochs from 0. It writes the header again when a run is resumed into the same file, and has no
column for the learning rate unless it is a recent version.
"""

import csv
from typing import Any

import yaml

from repro.released.log import Format, Log, LogError, Reading, Source

REQUIRED = ("epoch", "train_loss")
UNITS = {
    "lr": "1",
    "train_loss": "the training loss's own",
    "eval_loss": "nats",
    "eval_top1": "%",
    "eval_top5": "%",
}
BCE = "nats per class, mean over classes"
CE = "nats, against mixed and smoothed labels"


def matches(source: Source) -> bool:
    """Tell whether the file begins with timm's header."""
    return bool(source.head) and is_header(source.head[0].split(","))


def is_header(cells: list[str]) -> bool:
    """Tell whether these are names of columns: they are in every file where a run began or was resumed."""
    return all(name in [cell.strip() for cell in cells] for name in REQUIRED)


def read(source: Source) -> Log:
    """Read a summary.

    Raises:
        LogError: there is no header, or no record.
    """
    reading = Reading(source)
    columns: list[str] = []
    for number, line in enumerate(source.lines, 1):
        cells = [cell.strip() for cell in next(csv.reader([line]), [])]
        if not any(cells):
            reading.other()
        elif is_header(cells):
            if columns and reading.rows:
                reading.resumed(number, "a second header")
            columns = cells
            reading.other()
        elif not columns:
            raise LogError(f"{reading.at(number)}: no header with {', '.join(REQUIRED)} before the first row")
        else:
            _record(reading, number, columns, cells)
    known = [c for c in columns if c in UNITS]
    return reading.log("timm", {column: UNITS[column] for column in known})


def _record(reading: Reading, number: int, columns: list[str], cells: list[str]) -> None:
    if len(cells) != len(columns):
        reading.fault(number, f"{len(cells)} values under {len(columns)} columns")
        return
    try:
        values: dict[str, Any] = {c: float(v) for c, v in zip(columns, cells, strict=True) if v}
        values["epoch"] = int(values["epoch"])
    except (ValueError, KeyError, OverflowError) as error:
        reading.fault(number, f"not a row of numbers ({error})")
        return
    for column in ("eval_top1", "eval_top5"):
        if column in values:
            values[column] = round(values[column], 3)  # of 50,000 images; the rest is float noise
    reading.record(number, "epoch", values)


def read_args(source: Source) -> dict[str, Any]:
    """Return the settings in an `args.yaml`, unknown keys too; `no_prox`, newer than some files, is False.

    Raises:
        LogError: it is no flat mapping.
    """
    try:
        args = yaml.safe_load("\n".join(source.lines))
    except yaml.YAMLError as error:
        raise LogError(f"{source.path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(args, dict) or "model" not in args:
        raise LogError(f"{source.path}: not the arguments of a timm run (no `model: ...` in it)")
    return {"no_prox": False, **args}


FORMAT = Format("timm", "timm summary", matches, read, epochs_from=0)
