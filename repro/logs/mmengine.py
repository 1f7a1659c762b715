"""mmengine's `scalars.json` (also `<time>.json`): a JSON object for every so many iterations and evaluation.

Iterations count over the whole run, from 1. An evaluation has no `iter`, and its `step` is the number of
finished epochs where training goes by epochs: its record then has that epoch, and the step of the last record
of training before it.
"""

import json
import re
from typing import Any

from repro.logs.gather import Columns
from repro.logs.log import Format, Log, Reading
from repro.logs.source import Source, numeric, whole

UNITS = {"lr": "1", "time": "s", "data_time": "s", "memory": "MiB", "eval_time": "s", "eval_data_time": "s"}
_STAGE = re.compile(r"^(train|val|test)/")  # with log_with_hierarchy


def matches(source: Source) -> bool:
    """Tell whether one of the first lines is a record of training: `iter` and `step` are the same."""
    return any(
        isinstance(record := _parse(line), dict)
        and {"step", "data_time"} <= record.keys()
        and record.get("iter") == record["step"]
        for line in source.head
    )


def read(source: Source) -> Log:
    """Read the records of a run.

    Raises:
        LogError: there is no record.
    """
    reading, columns = Reading(source), Columns()
    for number, line in reading.sound(closed=True):
        record = _parse(line)
        if isinstance(record, str):
            reading.fault(number, record)
            continue
        try:
            _record(reading, columns, number, record)
        except ValueError as error:
            reading.fault(number, str(error))
    return reading.log("mmengine", UNITS)


def _parse(line: str) -> dict[str, Any] | str:
    """Return the record of a line without the stages in its names, or why it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    if not isinstance(record, dict) or "step" not in record:
        return "not a JSON object with a step"
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
