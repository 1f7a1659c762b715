"""Logs of fairseq with `log_format` json or simple, from hydra or fairseq-train, and its configurations.

Lines have the form `[time][logger][LEVEL] - message` in `hydra_train.log`, and `time | LEVEL | logger |
message` from fairseq-train. The loggers train_inner (at intervals), train (each epoch) and valid (or the name
of another validation set) write a JSON object whose values are texts, or `loss=10.5, ...`, or `| loss 10.5 |
...`. Losses are in bits if there is a perplexity, which is 2^loss. `num_updates` has 6 significant digits.
`clip` exists only if gradients are clipped, and the wall clock restarts with each process. A message may
continue over lines without a time: the model, a traceback.
"""

import ast
import re
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from repro.logs.log import Format, Log, Reading
from repro.logs.source import LogError, Source, literal, numeric, whole
from repro.reading import check_yaml, parse_json

_TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
_HEAD = rf"(?:\[{_TIME},\d{{3}}\]\[([\w.]+)\]\[[A-Z]+\] - |{_TIME} \| [A-Z]+ \| ([\w.]+) \| )"
LINE = re.compile(_HEAD + "(.*)")  # the format of Hydra and logging, so other programs have it, too
RECORD = re.compile(_HEAD + r'(?:\{"epoch": |epoch \d+(?::| \|) )')
BEGIN = re.compile(rf"\[|{_TIME}")  # of a line that does not continue a message
INNER = re.compile(r"epoch (\d+): +\d+ / \d+ (.*)")  # log_format: simple
SUMMARY = re.compile(r"epoch (\d+) \| (?:valid on '[^']*' subset \| )?(.*)")
RECORDS = {  # logger: kind of its records, prefix of its keys, prefix of our columns
    "train_inner": ("train", "", "train_"),
    "train": ("epoch", "train_", "train_"),
    "valid": ("eval", "valid_", "eval_"),
}
COLUMNS = {  # of training; all others are losses and metrics of training or validation data
    "lr": "lr",
    "gnorm": "grad_norm",
    "clip": "clip",
    "loss_scale": "loss_scale",
    "wps": "words_per_second",
    "ups": "updates_per_second",
    "wpb": "words_per_batch",
    "bsz": "samples_per_batch",
    "wall": "seconds",
    "train_wall": "train_seconds",  # of these, in training steps
    "gb_free": "gb_free",
}
UNITS = {
    "lr": "1",
    "grad_norm": "L2",
    "clip": "% of updates",
    "loss_scale": "1",
    "words_per_second": "tokens/s",
    "updates_per_second": "1/s",
    "words_per_batch": "tokens",
    "samples_per_batch": "sequences",
    "seconds": "s",
    "train_seconds": "s",
    "gb_free": "GiB",
}
CHECKPOINT = r"checkpoint (?P<path>.*) \(epoch (?P<epoch>\d{1,15}) @ (?P<step>\d{1,15}) updates"
EVENTS = {
    "overflow": re.compile(r"NOTE: gradient overflow detected.*setting loss scale to: (?P<loss_scale>\S+)"),
    "checkpoint": re.compile("[Ss]aved " + CHECKPOINT),
    "loaded": re.compile("[Ll]oaded " + CHECKPOINT),
    "done": re.compile(r"done training in (?P<seconds>\S+) seconds"),
}
VALUES: dict[str, Callable[[str], Any]] = {"path": str, "epoch": whole, "step": whole}  # of events
FACTS = {  # on model and data, in addition to the configuration
    "parameters": re.compile(r"num\. shared model params: (\d[\d,]{,20})"),
    "devices": re.compile(r"training on (\d{1,15}) devices"),
    "dictionary": re.compile(r"dictionary: (\d{1,15}) types"),
    "iterations_per_epoch": re.compile(r"grouped total_num_itrs = (\d{1,15})"),
}
LOADED = re.compile(r"loaded (\d[\d,]{,20}) (examples|blocks) from: .*?([^/\s]+)/?$")


def matches(source: Source) -> bool:
    """Return whether one of the first lines is from a logger of fairseq, or a record."""
    found = [match for line in source.head if (match := LINE.fullmatch(line))]
    return any((match[1] or match[2]).startswith("fairseq") or RECORD.match(match[0]) for match in found)


def read(source: Source) -> Log:
    """Read a log.

    The records are `train` (train_inner), `epoch` (train) and `eval` (valid), with the number of updates as
    `step`. `events` has overflow, checkpoint, loaded and done. `config` is the configuration of the run, as
    far as line 1 can be read, with facts on the data: parameters, devices, dictionary, iterations_per_epoch,
    examples and blocks (by subset).

    Raises:
        LogError: there is no record.
    """
    reading = Reading(source)
    config: dict[str, Any] = {}
    in_message = False  # lines without a time may follow
    for number, line in reading.sound(closed=True):
        match = LINE.fullmatch(line.rstrip())
        if match is None:
            if in_message and not BEGIN.match(line):
                reading.other()
            else:
                reading.fault(number, "neither `[time][logger][LEVEL] - message` nor the rest of a message")
                in_message = False
            continue
        logger, message = match[1] or match[2], match[3]
        simple = INNER.fullmatch(message) or SUMMARY.fullmatch(message)
        in_message = not message.startswith('{"') and not simple
        if in_message:
            reading.other()
            _message(reading, number, message, config)
        else:
            _record(reading, number, logger, message, simple)
    return reading.log("fairseq", UNITS | _bits(reading), config)


def _bits(reading: Reading) -> dict[str, str]:
    """Return the units of losses that come with a perplexity; others have the criterion's own unit."""
    columns = {name for row in reading.rows for name in row}
    sides = [name.removesuffix("ppl") for name in columns if name.endswith("_ppl")]
    losses = {f"{side}{loss}": "bits" for side in sides for loss in ("loss", "nll_loss", "best_loss")}
    return losses | {f"{side}ppl": "2^loss" for side in sides}


def _pairs(line: re.Match[str]) -> dict[str, Any]:
    """Return the values in a line of the simple format: `loss=10.5, ppl=...` or `loss 10.5 | ppl ...`.

    Raises:
        ValueError: a part is not a pair.
    """
    between, within = (",", "=") if line.re is INNER else ("|", " ")
    pairs = [part.strip().split(within, 1) for part in line[2].split(between)]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"not `key{within}value` everywhere")
    return {"epoch": line[1], **dict(pairs)}


def _record(reading: Reading, number: int, logger: str, message: str, simple: re.Match[str] | None) -> None:
    try:
        given = _pairs(simple) if simple else dict(parse_json(message))
        known = logger in RECORDS
        if not known and f"{logger}_num_updates" not in given and "num_updates" not in given:
            raise ValueError(f"a record of {logger}, where {', '.join(RECORDS)} are known")
        record, prefix, side = RECORDS.get(logger, ("eval", f"{logger}_", f"eval_{logger}_"))
        content = {key.removeprefix(prefix): value for key, value in given.items()}
        values: dict[str, Any] = {"step": whole(content.pop("num_updates"))}
        values["epoch"] = whole(content.pop("epoch"))
        content.pop("update", None)  # the epoch as a fraction
        for key, value in content.items():
            values[COLUMNS.get(key, side + key)] = numeric(value)
    except (ValueError, RecursionError) as error:
        reading.fault(number, f"not a record ({error})")
        return
    except KeyError as error:
        reading.fault(number, f"a record without {prefix}{error.args[0]}")
        return
    if known:
        reading.record(number, record, values)
    else:  # a further validation set
        reading.part(number, record, values)


def _message(reading: Reading, number: int, message: str, config: dict[str, Any]) -> None:
    """Keep the facts and events in a message."""
    if message.startswith(("{'_name'", "Namespace(")):
        if reading.rows:
            reading.resumed(number, "a second start")
        else:
            config |= _settings(reading, number, message)
        return
    for what, pattern in EVENTS.items():
        if match := pattern.match(message):
            step = max((row["step"] for row in reading.rows[-1:]), default=0)
            event = {"line": number, "what": what, "step": step}
            event |= {key: VALUES.get(key, literal)(value) for key, value in match.groupdict().items()}
            reading.events.append(event)
            if what == "loaded" and event["step"]:  # initial weights have update 0
                reading.resumed(number, f"from update {event['step']}")
    for name, pattern in FACTS.items():
        if match := pattern.match(message):
            config.setdefault(name, int(match[1].replace(",", "")))
    if match := LOADED.match(message):
        count, what, subset = match.groups()
        config.setdefault(what, {})[subset] = int(count.replace(",", ""))


def _settings(reading: Reading, number: int, message: str) -> dict[str, Any]:
    """Return a configuration printed as Namespace(...), or as a dict with enumerations as bare words."""
    if message.startswith("Namespace("):
        try:
            call = ast.parse(message, mode="eval").body
            if isinstance(call, ast.Call):
                return {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    quoted = re.sub(r"(?<=': )(?!(?:True|False|None)\b)([A-Za-z_]\w*)(?=[,}])", r"'\1'", message)
    settings = literal(quoted)
    if isinstance(settings, dict):
        return settings
    reading.odd(number, "a configuration that cannot be read")
    return {}


def read_config(source: Source) -> dict[str, Any]:
    """Return a configuration of fairseq (full_config-*.yaml, config/**/*.yaml) with references resolved.

    Missing values (`???`) stay. The part `hydra`, which no run uses, is left out.

    Raises:
        LogError: the file is not a configuration of fairseq.
    """
    text = "\n".join(source.lines)
    try:
        check_yaml(text)
        config = OmegaConf.create(text)
        if isinstance(config, DictConfig):
            config.pop("hydra", None)
        settings = OmegaConf.to_container(config, resolve=True)
    except Exception as error:  # OmegaConf's own, and whatever PyYAML lets through
        raise LogError(f"{source.path}: not a configuration ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict) or "task" not in settings:
        raise LogError(f"{source.path}: not a configuration of fairseq (no `task:` in it)")
    return {str(key): value for key, value in settings.items()}


FORMAT = Format("fairseq", "fairseq log", matches, read, line=RECORD)
