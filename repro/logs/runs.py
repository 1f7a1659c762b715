"""Our own runs: the folder of a run, or its metrics.jsonl (see repro.train.run_folder).

A record of an evaluation is `epoch` at the end of an epoch and `eval` elsewhere (`eval_every`); its
train_loss is the mean since the epoch began. `test` is the evaluation of the best weights at the end. All
others are `train`, with the mean over `run.log_every` steps. Columns are named as in the file; `epoch` counts
finished epochs. Continuing a run drops the records after the checkpoint, so that none is repeated.
"""

import json
from pathlib import Path
from typing import Any

from repro.errors import UserError
from repro.logs.gather import UNITS, number, whole
from repro.logs.log import Format, Log, Reading
from repro.logs.source import Source, json_object
from repro.logs.timm import BCE, CE
from repro.runs import CONFIG, ENVIRONMENT, METRICS, SUMMARY, read_config, read_starts, read_summary

REQUIRED = ("step", "lr", "epoch")  # the first keys of every record, in this order
TRAINING = (*REQUIRED, "train_", "grad_norm")  # prefixes of all keys of a training record


def matches(source: Source) -> bool:
    """Return whether this is a run's folder or its metrics: JSON lines that begin with step, lr and epoch."""
    if source.path.is_dir():
        path = source.path / METRICS
        return path.is_file() and (path.stat().st_size == 0 or matches(Source(path)))
    return any(
        (*record,)[:3] == REQUIRED and None not in map(number, record.values()) for record in source.objects
    )


def read(source: Source) -> Log:
    """Read the records of a run, finished or not, and the configuration next to them.

    Raises:
        LogError: there is no record yet.
    """
    if source.path.is_dir():
        source = Source(source.path / METRICS)
    reading = Reading(source)
    complete = source.data.endswith(b"\n")
    for count, line in enumerate(source.lines, 1):
        if not line.strip():
            reading.other()
            continue
        try:
            record = _parse(line)
        except ValueError as error:
            cut = count == len(source.lines) and not complete
            incomplete = "the last line is incomplete: it was being written (continuing drops it)"
            reading.fault(count, incomplete if cut else str(error))
        else:
            reading.record(count, _kind(record), record)
    config = _other_files(reading, source.path.parent)
    columns = {column for row in reading.rows for column in row}
    units = {column: unit for column in sorted(columns) if (unit := _unit(column))}
    if "train_loss" in columns:
        units["train_loss"] = _loss(config)
    return reading.log("run", units, config)


def _parse(line: str) -> dict[str, Any]:
    """Return the record in a line.

    Raises:
        ValueError: there is none.
    """
    values = json_object(line, REQUIRED)
    record: dict[str, Any] = {key: number(value) for key, value in values.items()}
    record["step"] = whole(values["step"])
    for key, value in record.items():
        if value is None:
            raise ValueError(f"{key} is no number ({json.dumps(values[key])[:40]})")
    return record


def _kind(record: dict[str, Any]) -> str:
    if "weights_of_step" in record:
        return "test"
    if all(key.startswith(TRAINING) for key in record):
        return "train"
    return "epoch" if record["epoch"].is_integer() else "eval"


def _unit(column: str) -> str | None:
    if column.endswith(("accuracy", "top1", "top5")):
        return "%"
    return UNITS.get(column.removeprefix("ema_"))


def _loss(config: dict[str, Any]) -> str:
    """Return the unit of the training loss, which the configuration of image classification determines."""
    mixed = any(config.get(f"augment.{key}") for key in ("mixup", "cutmix", "label_smoothing"))
    known = {"bce": BCE, "ce": CE if mixed else "nats"}
    return known.get(str(config.get("loss")), UNITS["train_loss"])


def _other_files(reading: Reading, folder: Path) -> dict[str, Any]:
    """Return the configuration; starts and the end of the run become events.

    A damaged file is only remarked upon, as the records do not need it.
    """
    found: dict[str, Any] = {}
    for name, load in ((CONFIG, read_config), (ENVIRONMENT, read_starts), (SUMMARY, read_summary)):
        try:
            found[name] = load(folder) if (folder / name).is_file() else None
        except UserError as error:
            reading.oddities.append(str(error))
    reading.events += [{"line": 0, "what": "start", **start} for start in found.get(ENVIRONMENT) or []]
    if summary := found.get(SUMMARY):
        reading.events.append({"line": 0, "what": "finished", **summary})
    return found.get(CONFIG) or {}


FORMAT = Format("run", "run folder of this project", matches, read)
