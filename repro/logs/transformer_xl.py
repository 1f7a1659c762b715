"""The `log.txt` of Transformer-XL's train.py: settings, a line every 200 steps, and one per evaluation.

Losses are in nats with 2 decimals, perplexity (exp of the loss) has 3; lr has 3 significant digits. `loss`
and `ms/batch` are means since the previous line, which may include an evaluation. Epochs count from 1. The
test result is that of the checkpoint with the best validation loss.
"""

import math
import re
from itertools import pairwise
from typing import Any

from repro.logs.log import Format, Log, Reading
from repro.logs.source import Source, literal, numeric, whole

LINE = re.compile(r"\| (epoch +\d+ step|Eval +\d+ at step|End of training \|)")
TRAIN = re.compile(
    r"\| epoch +(\d+) step +(\d+) \| +(\d+) batches \| lr +(\S+) \| ms/batch +(\S+)"
    r" \| loss +(\S+) \| (ppl|bpc) +(\S+)"
)
EVAL = re.compile(
    r"\| Eval +(\d+) at step +(\d+) \| time: +(\S+)s \| valid loss +(\S+) \| valid (ppl|bpc) +(\S+)"
)
TEST = re.compile(r"\| End of training \| test loss +(\S+) \| test (ppl|bpc) +(\S+)")
RULE = re.compile(r"=+|-+")
SETTING = re.compile(r"- (\w+) :(?: (.*))?")
OTHER = re.compile(r"#(?:params|non emb params) = \d+|End of training|Exiting from training early")
UNITS = {
    "lr": "1",
    "batch": "steps in the epoch",
    "train_loss": "nats",
    "eval_loss": "nats",
    "test_loss": "nats",
    "train_ppl": "exp(loss)",
    "eval_ppl": "exp(loss)",
    "test_ppl": "exp(loss)",
    "train_bpc": "bits",
    "eval_bpc": "bits",
    "test_bpc": "bits",
    "ms_per_step": "ms",
    "seconds": "s",
}


def matches(source: Source) -> bool:
    """Return whether the first lines are settings between rules, or records."""
    head = source.head
    settings = any(RULE.fullmatch(a) and SETTING.fullmatch(b) for a, b in pairwise(head))
    return settings or any(LINE.match(line) for line in head)


def read(source: Source) -> Log:
    """Read a log; `config` gets its settings as Python values.

    The record `test` has the step of the best evaluation before it, whose model was tested. `seconds`, at
    evaluations, is the sum of the times between evaluations, as long as none is missing.

    Raises:
        LogError: there is no record.
    """
    reading = Reading(source)
    config: dict[str, Any] = {}
    clock = _Clock(0)
    for number, line in reading.sound():
        text = line.strip()
        if setting := SETTING.fullmatch(text):
            clock = _Clock(None)
            if reading.rows:  # another process has continued the file
                reading.resumed(number, "settings again")
            else:
                config[setting[1]] = literal(setting[2] or "")
            reading.other()
        elif text.startswith("|"):
            _record(reading, number, text, clock)
        elif RULE.fullmatch(text) or OTHER.fullmatch(text) or not reading.rows:
            reading.other()
        else:
            reading.fault(number, "neither a record nor a rule")
    return reading.log("transformer_xl", UNITS, config)


class _Clock:
    """Time since the process started, as the sum of the times between evaluations.

    `last` is the index of the previous evaluation, from 1 over the whole run; None: the process just started.
    """

    def __init__(self, last: int | None) -> None:
        self.last, self.seconds = last, 0.0

    def evaluation(self, index: int, seconds: float) -> dict[str, float]:
        """Return the time at evaluation `index`, if known."""
        if index != self.last:  # else another process has written it before
            follows = self.last is None or index == self.last + 1
            self.seconds = self.seconds + seconds if follows else math.nan
            self.last = index
        return {} if math.isnan(self.seconds) else {"seconds": self.seconds}


def _record(reading: Reading, number: int, text: str, clock: _Clock) -> None:
    values: dict[str, Any]
    try:
        if match := TRAIN.fullmatch(text):
            epoch, step, batch, lr, ms, loss, metric, value = match.groups()
            values = {"epoch": whole(epoch), "step": whole(step), "batch": whole(batch), "lr": numeric(lr)}
            values |= {
                "ms_per_step": numeric(ms),
                "train_loss": numeric(loss),
                f"train_{metric}": numeric(value),
            }
            reading.record(number, "train", values)
        elif match := EVAL.fullmatch(text):
            index, step, seconds, loss, metric, value = match.groups()
            values = {"step": whole(step), "eval_loss": numeric(loss), f"eval_{metric}": numeric(value)}
            values |= clock.evaluation(whole(index), numeric(seconds))
            reading.record(number, "eval", values)
        elif match := TEST.fullmatch(text):
            loss, metric, value = match.groups()
            values = {"step": _best(reading, metric)}
            values |= {"test_loss": numeric(loss), f"test_{metric}": numeric(value)}
            reading.record(number, "test", values)
        else:
            reading.fault(number, "not a whole record of training, evaluation or test")
    except ValueError as error:
        reading.fault(number, f"not a record ({error})")


def _best(reading: Reading, metric: str) -> int:
    """Return the step of the best evaluation so far, or else of the last record.

    Raises:
        ValueError: there is no record.
    """
    results = [(row.get(f"eval_{metric}", math.nan), row["step"]) for row in reading.rows]
    finite = [result for result in results if math.isfinite(result[0])]
    if finite:
        return int(min(finite)[1])
    if reading.rows:
        return int(reading.rows[-1]["step"])
    raise ValueError("nothing before it says which step was tested")


FORMAT = Format("transformer_xl", "Transformer-XL log", matches, read, line=LINE)
