"""Output of Megatron-LM during training, and the `gpt_args` with which a run was started.

A line at regular intervals has `key: value` between `|`; keys and their order depend on the version, and
there is no loss while iterations are skipped. Launchers prefix a rank or a time. Each of several validation
sets has its own columns (`eval_0_loss`). The evaluation after training uses other batches than the last one
during training: it is a record `final` if both are of one iteration. All other output is skipped, except
arguments and checkpoints.
"""

import re
import shlex
from typing import Any

from repro.logs.log import POSITION, Format, Log, Reading
from repro.logs.source import LogError, Source, literal, numeric, whole

TAG = r"(?:\[[^\]|]*\]:?|\d+:|\s)*"  # rank and time
LOSS_AT = r"(validation|test)(?:-(\w+))? loss at "  # with the name of a set if there are several
LINE = re.compile(TAG + rf"(?:iteration +\d+ */ *\d+ *\||{LOSS_AT}[^|]*\|)")
TRAIN = re.compile(TAG + r"iteration +(\d+) */ *(\d+) *\|(.*)")
EVAL = re.compile(TAG + LOSS_AT + r"([^|]*)\|(.*)")
FINAL = re.compile(r"on (?:validation|test) set")  # since core_v0.4; older versions state no iteration
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
    "grad_norm": "L2",
    "loss_scale": "1",
    "ms_per_step": "ms",
    "samples": "1",
    "tokens": "1",
    "skipped": "iterations",
    "nan_iterations": "iterations",
}


def matches(source: Source) -> bool:
    """Return whether there is a record anywhere: hundreds of other lines may come first."""
    return bool(source.head) and any(LINE.match(line) for line in source.lines)


def read(source: Source) -> Log:
    """Read a log; `config` gets the printed arguments and `parameters`, the sum over ranks.

    Raises:
        LogError: there is no record.
    """
    reading = Reading(source)
    config: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    loaded: tuple[int, str] | None = None  # a checkpoint, to continue or to evaluate
    for number, line in reading.sound():
        text = line.strip()
        if match := TRAIN.fullmatch(text):
            if loaded:
                reading.resumed(*loaded)
                loaded = None
            _train(reading, number, *match.groups())
        elif match := EVAL.fullmatch(text):
            _evaluation(reading, number, *match.groups())
        elif "|" in text and re.match(TAG + r"(iteration|(validation|test)(-\w+)? loss)\b", text):
            reading.fault(number, "not a whole record")
        else:
            reading.other()
            if match := ARGUMENT.fullmatch(text):
                config.setdefault(match[1], literal(match[2]))
            elif match := PARAMETERS.match(text):
                ranks[match[1]] = int(match[2])
            else:
                loaded = _event(reading, number, text) or loaded
    if ranks:
        config["parameters"] = sum(ranks.values())
    measured = {name for row in reading.rows for name in row if name.startswith(("eval_", "test_", "final_"))}
    units = {name: "nats" for name in measured if name.endswith("_loss")}
    units |= {name: "exp(loss)" for name in measured if name.endswith("_ppl")}
    return reading.log("megatron", UNITS | units, config)


def _pairs(text: str, columns: dict[str, str]) -> dict[str, float]:
    """Return the numbers between the bars by column.

    Raises:
        ValueError: a part is not a name with a number, or its column is taken.
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


def _evaluation(reading: Reading, number: int, data: str, name: str | None, where: str, text: str) -> None:
    """Keep an evaluation; one after training gets the step of the last record or checkpoint."""
    record = "test" if data == "test" or "test" in where else "eval"
    at = re.search(r"iteration +(\d+)", where)
    prefix = f"{record}_" if name is None else f"{record}_{name}_"
    try:
        pairs = _pairs(text, EVAL_COLUMNS)
        step = whole(at[1]) if at else _last(reading)
        if step is None:
            raise ValueError("nothing before it says after which iteration")
    except ValueError as error:
        reading.fault(number, f"not a record ({error})")
        return
    values = {prefix + column: value for column, value in pairs.items()}
    if at is None or FINAL.search(where):
        same = (row for row in reversed(reading.rows) if row["record"] == record and row["step"] == step)
        if not values.keys().isdisjoint(next(same, {})):
            reading.odd(number, "evaluated again at the end of training, on other batches: kept as `final`")
            record, values = "final", {f"final_{column}": value for column, value in values.items()}
    keep = reading.record if name is None else reading.part
    keep(number, record, {"step": step, **values})


def _last(reading: Reading) -> int | None:
    """Return the step of the last record, or else of the loaded checkpoint."""
    loaded = (event["step"] for event in reversed(reading.events) if event["what"] == "loaded")
    return int(reading.rows[-1]["step"]) if reading.rows else next(loaded, None)


def _event(reading: Reading, number: int, text: str) -> tuple[int, str] | None:
    """Keep an event; if a checkpoint was loaded, return where and from which iteration training continues."""
    for what, pattern in EVENTS.items():
        if match := pattern.match(text):
            step = int(match[1]) if match[1] else _last(reading) or 0
            reading.events.append({"line": number, "what": what, "step": step})
            if what == "loaded" and step:
                return number, f"from iteration {step}"
    return None


def read_args(source: Source) -> dict[str, Any]:
    """Return the arguments in a file of `--flag value` lines under Megatron's names, such as `train_iters`.

    Several values become a list, and a flag without a value True.

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
