"""The `log.txt` of MAE's scripts, and of DeiT's and others' for classification: one JSON object per epoch.

Epochs count from 0. lr is the mean over the iterations of the epoch, of the highest rate if layers differ.
Pre-training logs only have the training loss. The settings are not in the file. Scripts that log other losses
in this way (DINO, DETR) are read as tables.
"""

import re
from typing import Any

from repro.logs.log import POSITION, Format, Log, Reading
from repro.logs.source import Source, json_object, numeric, whole

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
    """Return whether one of the first lines has just the keys of pre-training, or a loss and an accuracy."""
    finetuning = {*KEYS, "test_loss", "test_acc1"}
    return any((*record,) == ORDER or finetuning <= record.keys() for record in source.objects)


def read(source: Source) -> Log:
    """Read a log of pre-training or fine-tuning; `config` gets the number of `parameters` if it is logged.

    Raises:
        LogError: there is no record.
    """
    reading = Reading(source)
    config: dict[str, Any] = {}
    for number, line in reading.sound(closed=True):
        try:
            record = json_object(line, KEYS)
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


FORMAT = Format("mae", "MAE JSON lines", matches, read, epochs_from=0, line=LINE)
