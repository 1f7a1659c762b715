"""What Megatron-LM prints while it trains, and the `gpt_args` that a run was started with.

A line every so many iterations has `key: value` between `|`, in an order and a choice that differ between
versions; there is no loss while iterations are skipped. Launchers put a rank or a time before it. All else
that Megatron prints is passed over but for its arguments and checkpoints.
"""

import re
import shlex
from typing import Any

from repro.released.log import POSITION, Format, Log, Reading
from repro.released.source import LogError, Source, literal, numeric, whole

TAG = r"(?:\[[^\]|]*\]:?|\d+:|\s)*"  # of the process, and the time
LINE = re.compile(TAG + r"(?:iteration +\d+ */ *\d+ *\||(?:validation|test) loss at [^|]*\|)")
TRAIN = re.compile(TAG + r"iteration +(\d+) */ *(\d+) *\|(.*)")
EVAL = re.compile(TAG + r"(?:validation|test) loss at ([^|]*)\|(.*)")
ARGUMENT = re.compile(TAG + r"(\w+) \.{3,} (.*)")
PARAMETERS = re.compile(TAG + r">? *number of parameters on .*rank (\(.*\)): (\d{1,15})")
EVENTS = {
    "checkpoint": re.compile(TAG + r"successfully saved checkpoint at iteration +(\d{1,15})"),
    "loaded": re.compile(TAG + r"successfully loaded checkpoint from .* at iteration +(\d{1,15})"),
    "done": re.compile(TAG + r"\[after training is done\]()"),
}
COLUMNS = {
    "learning rate": "lr",
    "lm loss": "train_loss",
    "grad norm": "grad_norm",
    "loss scale": "loss_scale",
    "elapsed time per iteration (ms)": "ms_per_step",
    "consumed samples": "samples",
    "consumed tokens": "tokens",
    "number of skipped iterations": "skipped",
    "number of nan iterations": "nan_iterations",
}
EVAL_COLUMNS = {"lm loss value": "loss", "lm loss PPL": "ppl"}
UNITS = {
    "lr": "1",
    "train_loss": "nats",
    "eval_loss": "nats",
    "test_loss": "nats",
    "eval_ppl": "exp(loss)",
    "test_ppl": "exp(loss)",
    "grad_norm": "L2",
    "loss_scale": "1",
    "ms_per_step": "ms",
    "samples": "1",
    "tokens": "1",
    "skipped": "iterations",
    "nan_iterations": "iterations",
}


def matches(source: Source) -> bool:
    """Tell whether there is a line of training anywhere: hundreds of others may come first."""
    return bool(source.head) and any(LINE.match(line) for line in source.lines)


def read(source: Source) -> Log:
    """Read a log; `config` gets the arguments that are printed, and `parameters`, the sum over ranks.

    Raises:
        LogError: there is no record.
    """
    reading = Reading(source)
    config: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    for number, line in reading.sound():
        text = line.strip()
        if match := TRAIN.fullmatch(text):
            _train(reading, number, *match.groups())
        elif match := EVAL.fullmatch(text):
            _evaluation(reading, number, *match.groups())
        elif "|" in text and re.match(TAG + r"(iteration|validation loss|test loss)\b", text):
            reading.fault(number, "not a whole record")
        else:
            reading.other()
            if match := ARGUMENT.fullmatch(text):
                config.setdefault(match[1], literal(match[2]))
            elif match := PARAMETERS.match(text):
                ranks[match[1]] = int(match[2])
            else:
                _event(reading, number, text)
    if ranks:
        config["parameters"] = sum(ranks.values())
    return reading.log("megatron", UNITS, config)


def _pairs(text: str, columns: dict[str, str]) -> dict[str, float]:
    """Return the numbers between the bars, by the columns that their names have.

    Raises:
        ValueError: something there is not a name with a number, or has another's column.
    """
    pairs: dict[str, float] = {}
    for cell in filter(None, (cell.strip() for cell in text.split("|"))):
        name, _, value = (part.strip() for part in cell.rpartition(":"))
        column = columns.get(name) or re.sub(r"\W+", "_", name).strip("_")
        if not column:
            raise ValueError(f"{cell!r:.80} is no `name: value`")
        if column in POSITION or column in pairs:
            raise ValueError(f"{name!r:.80} has the column of something else")
        pairs[column] = numeric(value)
    if not pairs:
        raise ValueError("no values")
    return pairs


def _train(reading: Reading, number: int, iteration: str, _: str, text: str) -> None:
    try:
        values: dict[str, Any] = {"step": whole(iteration), **_pairs(text, COLUMNS)}
    except ValueError as error:
        reading.fault(number, f"not a record ({error})")
        return
    reading.record(number, "train", values)


def _evaluation(reading: Reading, number: int, where: str, text: str) -> None:
    """Keep an evaluation; one at the end of training has the step of the last record."""
    record = "test" if "test" in where else "eval"
    at = re.search(r"iteration +(\d+)", where)
    try:
        pairs = _pairs(text, EVAL_COLUMNS)
        values: dict[str, Any] = {"step": whole(at[1]) if at else _last(reading)}
        values |= {f"{record}_{column}": value for column, value in pairs.items()}
    except ValueError as error:
        reading.fault(number, f"not a record ({error})")
        return
    again = any(row["record"] == record and row["step"] == values["step"] for row in reading.rows[-2:])
    if at is None and again:
        reading.other()
        reading.odd(number, "evaluated once more at the end of training, on other batches: left out")
    else:
        reading.record(number, record, values)


def _last(reading: Reading) -> int:
    if not reading.rows:
        raise ValueError("nothing before it says after which iteration")
    return int(reading.rows[-1]["step"])


def _event(reading: Reading, number: int, text: str) -> None:
    for what, pattern in EVENTS.items():
        if match := pattern.match(text):
            step = int(match[1]) if match[1] else _last(reading) if reading.rows else 0
            reading.events.append({"line": number, "what": what, "step": step})
            if what == "loaded" and step:
                reading.resumed(number, f"from iteration {step}")


def read_args(source: Source) -> dict[str, Any]:
    """Return the arguments in a file of `--flag value` lines, named as Megatron names them: `train_iters`.

    Numbers are numbers, several values are a list, and a flag without a value is True.

    Raises:
        LogError: a line is something else.
    """
    args: dict[str, Any] = {}
    for number, line in enumerate(source.lines, 1):
        try:
            words = shlex.split(line.rstrip().removesuffix("\\"), comments=True)
        except ValueError as error:
            raise LogError(f"{source.path}:{number}: not an argument ({error})") from error
        flag = ""
        for word in words:
            if re.fullmatch(r"--[A-Za-z][\w-]*", word):
                flag = word[2:].replace("-", "_")
                args[flag] = []
            elif flag:
                args[flag].append(literal(word))
            else:
                raise LogError(f"{source.path}:{number}: {word[:80]!r} where a --flag is expected")
    if not args:
        raise LogError(f"{source.path}: no arguments in it")
    return {flag: values if len(values) > 1 else (values or [True])[0] for flag, values in args.items()}


FORMAT = Format("megatron", "Megatron-LM output", matches, read, line=LINE)
