"""mmengine's `scalars.json` (or `<time>.json`): a JSON object per logged iteration and evaluation.

Iterations count over the whole run, from 1. An evaluation has no `iter`. If training goes by epochs, its
`step` is the number of finished epochs: its record then gets that epoch, and the step of the last training
record.
"""

import re
from typing import Any

from repro.logs.gather import Columns
from repro.logs.log import Format, Log, Reading
from repro.logs.source import Source, json_object, numeric, whole

UNITS = {"lr": "1", "time": "s", "data_time": "s", "memory": "MiB", "eval_time": "s", "eval_data_time": "s"}
_STAGE = re.compile(r"^(train|val|test)/")  # with log_with_hierarchy


def matches(source: Source) -> bool:
    """Return whether one of the first lines is a training record: `iter` and `step` are equal."""
    records = map(_plain, source.objects)
    return any({"step", "data_time"} <= r.keys() and r.get("iter") == r["step"] for r in records)


def read(source: Source) -> Log:
    """Read the records of a run.

    Raises:
        LogError: there is no record.
    """
    reading, columns = Reading(source), Columns()
    for number, line in reading.sound(closed=True):
        try:
            _record(reading, columns, number, _plain(json_object(line, ["step"])))
        except ValueError as error:
            reading.fault(number, str(error))
    return reading.log("mmengine", UNITS)


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without the stages in its names."""
    return {_STAGE.sub("", key): value for key, value in record.items()}


def _record(reading: Reading, columns: Columns, number: int, record: dict[str, Any]) -> None:
    training = "iter" in record
    values: dict[str, Any] = {"step": whole(record.pop("step"))}
    trained = (row for row in reversed(reading.rows) if row["record"] == "train")
    last: dict[str, Any] = next(trained, {})
    if training and "epoch" in record:
        values["epoch"] = whole(record.pop("epoch"))
    elif not training and "epoch" in last:
        values = {"step": last["step"], "epoch": values["step"]}
    record.pop("iter", None)
    lost = []
    for name, value in record.items():
        try:
            values[columns[name if training else f"val/{name}"]] = numeric(value)
        except ValueError:
            lost.append(name)
    reading.record(number, "train" if training else "eval", values)
    if lost:
        reading.odd(number, f"no number, and left out: {', '.join(lost)}")


FORMAT = Format("mmengine", "mmengine scalars.json", matches, read)
