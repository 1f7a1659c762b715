"""The `log.txt` of MAE's scripts, and of those of DeiT and others for classification: a JSON object an epoch.

Epochs count from 0. lr is the mean over the epoch's iterations, of the largest group's rate where layers have
different ones. Pre-training logs hold the training loss alone. The settings are not in the file. Scripts that
log other losses in this way (DINO, DETR) are no part of it: see tables.
"""

import re
from typing import Any

from repro.logs.log import POSITION, Format, Log, Reading
from repro.logs.source import Source, numeric, whole
from repro.reading import parse_json

KEYS = ("epoch", "train_lr", "train_loss")  # in every record
ORDER = ("train_lr", "train_loss", "epoch")  # all of pre-training
LINE = re.compile(r'\{"train_lr": ')
COLUMNS = {
    "train_lr": "lr",
    "test_acc1": "eval_top1",
    "test_acc5": "eval_top5",
    "train_grad_norm": "grad_norm",
    "train_loss_scale": "loss_scale",
}
UNITS = {"lr": "1", "eval_top1": "%", "eval_top5": "%", "grad_norm": "1", "loss_scale": "1"}
PLAIN = {*POSITION, "lr", "train_loss"}  # columns of pre-training
PRETRAINING = "mean squared error of masked patches"
FINETUNING = "nats, against mixed and smoothed labels"


def matches(source: Source) -> bool:
    """Tell whether one of the first lines has just the keys of pre-training, or a loss and an accuracy."""
    records = [record for line in source.head if isinstance(record := _parse(line), dict)]
    return any((*record,) == ORDER or {"test_loss", "test_acc1"} <= record.keys() for record in records)


def read(source: Source) -> Log:
    """Read a log of pre-training or fine-tuning; `config` gets the number of `parameters` where it is logged.

    Raises:
        LogError: there is no record.
    """
    reading = Reading(source)
    config: dict[str, Any] = {}
    for number, line in reading.sound(closed=True):
        record = _parse(line)
        if isinstance(record, str):
            reading.fault(number, record)
            continue
        try:
            if "n_parameters" in record:
                config["parameters"] = whole(record.pop("n_parameters"))
            values: dict[str, Any] = {"epoch": whole(record.pop("epoch"))}
            for key, value in record.items():
                column = COLUMNS.get(key) or re.sub("^test_", "eval_", key)
                if column in POSITION or column in values:
                    raise ValueError(f"key {key!r:.80} has the column of something else")
                values[column] = numeric(value)
        except ValueError as error:
            reading.fault(number, str(error))
            continue
        reading.record(number, "epoch", values)
    units = dict(UNITS)
    if any("eval_top1" in row for row in reading.rows):
        units |= {"train_loss": FINETUNING, "eval_loss": "nats"}
    elif all(row.keys() <= PLAIN for row in reading.rows):
        units["train_loss"] = PRETRAINING
    return reading.log("mae", units, config)


def _parse(line: str) -> dict[str, Any] | str:
    """Return the record of a line, or why it is none."""
    try:
        record = parse_json(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    if not isinstance(record, dict) or any(key not in record for key in KEYS):
        return f"not a JSON object with {', '.join(KEYS)}"
    return record


FORMAT = Format("mae", "MAE JSON lines", matches, read, epochs_from=0, line=LINE)
