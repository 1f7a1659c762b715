"""Output of nanoGPT's train.py and of scripts derived from it (Adam-mini's GPT-2).

`iter N:` has the loss of one batch, at regular intervals, and `step N:` the losses of an evaluation on
training and validation data. Iterations count from 0; an evaluation comes before the iteration with its
number. The utilisation (mfu) is -100 % until it is measured, and is then left out.
"""

import re
from typing import Any

from repro.logs.log import POSITION, Format, Log, Reading
from repro.logs.source import Source, numeric, whole

LINE = re.compile(r"(?:iter \d+: loss|step \d+: train loss) ")
RECORD = re.compile(r"(iter|step) (\d+): (.+)")
VALUE = re.compile(r"([A-Za-z][\w /()-]*?):? (\S+?)(ms|s|%)?")
COLUMNS = {
    ("iter", "loss"): "train_loss",
    ("iter", "time"): "ms_per_step",
    ("step", "train loss"): "eval_train_loss",
    ("step", "val loss"): "eval_loss",
}
UNITS = {
    "train_loss": "nats",
    "eval_train_loss": "nats",
    "eval_loss": "nats",
    "ms_per_step": "ms",
    "mfu": "%",
}
UNMEASURED = -100.0
PARAMETERS = re.compile(r"number of parameters: ([\d.]{1,15})M")
RESUME = re.compile(r"Resuming training from ")


def matches(source: Source) -> bool:
    """Return whether there is a record anywhere: settings and messages of the compiler may come first."""
    return bool(source.head) and any(LINE.match(line) for line in source.lines)


def read(source: Source) -> Log:
    """Read a log; `config` gets the number of `parameters`.

    Raises:
        LogError: there is no record.
    """
    reading = Reading(source)
    config: dict[str, Any] = {}
    for number, line in reading.sound():
        text = line.strip()
        if LINE.match(text):
            _record(reading, number, text)
            continue
        if match := PARAMETERS.match(text):
            config["parameters"] = round(float(match[1]) * 1e6)
        elif RESUME.match(text) and reading.rows:
            reading.resumed(number, "a second start")
        reading.other()
    return reading.log("nanogpt", UNITS, config)


def _record(reading: Reading, number: int, text: str) -> None:
    match = RECORD.fullmatch(text)
    assert match is not None, "LINE has matched"
    what, count, rest = match.groups()
    try:
        values: dict[str, Any] = {"step": whole(count)}
        for piece in rest.split(", "):
            found = VALUE.fullmatch(piece)
            if found is None:
                raise ValueError(f"{piece!r:.80} is no name and value")
            name = COLUMNS.get((what, found[1])) or re.sub(r"\W+", "_", found[1]).strip("_")
            if name in POSITION or name in values:
                raise ValueError(f"{found[1]!r:.80} has the column of something else")
            value = numeric(found[2])
            if name != "mfu" or value != UNMEASURED:
                values[name] = value
    except ValueError as error:
        reading.fault(number, f"not a record ({error})")
        return
    reading.record(number, "train" if what == "iter" else "eval", values)


FORMAT = Format("nanogpt", "nanoGPT output", matches, read, line=LINE)
