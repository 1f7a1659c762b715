"""Our own runs: a run's folder, or its metrics.jsonl (see repro.train.run_folder).

A record with measures is a measurement: `epoch` where an epoch ends, `eval` where it does not
(`eval_every`); its train_loss is the mean since the epoch began. `test` is what the best weights gave at
the end. The others are `train`, with the mean over `run.log_every` steps. Columns are named as in the file;
`epoch` counts epochs done. Continuing a run drops what the file has beyond the checkpoint, so that no record
is there twice.
"""

import json
from pathlib import Path
from typing import Any

from repro.errors import UserError
from repro.logs.gather import UNITS, number, whole
from repro.logs.log import Format, Log, Reading, Source
from repro.logs.timm import BCE, CE
from repro.runs import CONFIG, ENVIRONMENT, METRICS, SUMMARY, read_config, read_starts, read_summary

REQUIRED = ("step", "lr", "epoch")  # and in this order, by which a record is known
TRAINING = (*REQUIRED, "train_")  # how all begins that a record has without a measurement


def matches(source: Source) -> bool:
    """Tell whether it is a run's folder or its metrics: lines of JSON that begin with step, lr and epoch."""
    if source.path.is_dir():
        path = source.path / METRICS
        return path.is_file() and (path.stat().st_size == 0 or matches(Source(path)))
    return any(
        isinstance(record := _parse(line), dict) and (*record,)[:3] == REQUIRED for line in source.head
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
    for number_, line in enumerate(source.lines, 1):
        record = _parse(line)
        if not line.strip():
            reading.other()
        elif isinstance(record, dict):
            kind = _kind(record)
            reading.record(number_, kind, record)
        elif number_ == len(source.lines) and not complete:
            reading.fault(number_, "the last line is incomplete: it was being written (continuing drops it)")
        else:
            reading.fault(number_, record)
    config = _other_files(reading, source.path.parent)
    columns = {column for row in reading.rows for column in row}
    units = {column: unit for column in sorted(columns) if (unit := _unit(column))}
    if "train_loss" in columns:
        units["train_loss"] = _loss(config)
    return reading.log("run", units, config)


def _parse(line: str) -> dict[str, Any] | str:
    """The record of a line, or why it is none."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    if not isinstance(values, dict) or any(key not in values for key in REQUIRED):
        return f"not a record: it must have {', '.join(REQUIRED)}"
    record: dict[str, Any] = {key: number(value) for key, value in values.items()}
    record["step"] = whole(values["step"])
    wrong = [key for key, value in record.items() if value is None]
    return f"{wrong[0]} is no number ({json.dumps(values[wrong[0]])[:40]})" if wrong else record


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
    """The unit of the training loss: image classification's configuration says it."""
    mixed = any(config.get(f"augment.{key}") for key in ("mixup", "cutmix", "label_smoothing"))
    known = {"bce": BCE, "ce": CE if mixed else "nats"}
    return known.get(str(config.get("loss")), UNITS["train_loss"])


def _other_files(reading: Reading, folder: Path) -> dict[str, Any]:
    """The configuration; the run's starts, and that it is finished, become events.

    What is damaged is remarked upon, as the records do not need it.
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
