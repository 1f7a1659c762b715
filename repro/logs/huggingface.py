"""`trainer_state.json` of Hugging Face's Trainer, alone or in the folder of a checkpoint or run.

Its `log_history` has an entry for every log (loss: the mean since the previous one), for every evaluation
(`eval_...`), and one at the end (`train_runtime` etc.; its `train_loss` is the mean over the whole training,
so it becomes an event instead of a record). `epoch` is the number of finished epochs, a fraction. The line of
an entry is the one where it begins.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repro.logs.gather import Columns, Gathering, number, whole
from repro.logs.log import Format, Log, LogError, Reading, Source
from repro.reading import parse_json

FILE = "trainer_state.json"
_HISTORY = re.compile(r'"log_history"\s*:\s*\[')
_BETWEEN = re.compile(r"[\s,]*")
_NEXT = re.compile(r"\n\s*(?=\{)")
_STEP = re.compile(r'"global_step"\s*:\s*(\d{1,15})')
_BEST = ("best_metric", "best_global_step", "best_model_checkpoint")


def matches(source: Source) -> bool:
    """Return whether this is a trainer_state.json or a folder that has one, or checkpoints with one."""
    if source.path.is_dir():
        return bool(_states(source.path))
    head = source.head
    return bool(head) and head[0].startswith("{") and any('"log_history"' in line for line in head)


def read(source: Source) -> Log:
    """Read the newest state of a run.

    Raises:
        LogError: there is no log_history, or no record in it.
    """
    if source.path.is_dir():
        source = Source(max(_states(source.path), key=_progress))
    text = "\n".join(source.lines)
    reading, columns = Reading(source), Columns()
    gathering = Gathering(reading)
    for line, entry in _entries(source, text):
        _take(gathering, columns, line, entry)
    state: dict[str, Any] = {}
    try:
        state = parse_json(text)
    except (ValueError, RecursionError) as error:
        if not reading.faults:
            line = error.lineno if isinstance(error, json.JSONDecodeError) else len(source.lines)
            reading.fault(line, f"the file is damaged, its settings are lost ({error})")
    best = {key: state[key] for key in _BEST if state.get(key) is not None}
    if best:
        reading.events.append({"line": 1, "what": "best", **best})
    config = {key: value for key, value in state.items() if key not in ("log_history", *_BEST)}
    return gathering.log("huggingface", config)


def _take(gathering: Gathering, columns: Columns, line: int, entry: Any) -> None:
    reading = gathering.reading
    if isinstance(entry, Exception):
        reading.fault(line, f"the entry of log_history that begins here is damaged ({entry})")
        return
    step = whole(entry.get("step")) if isinstance(entry, dict) else None
    if step is None:
        reading.fault(line, f"an entry of log_history without a step: {json.dumps(entry)[:80]}")
        return
    if "train_runtime" in entry:
        reading.other()
        reading.events.append({"line": line, "what": "end of training", **entry})
        return
    values = {}
    for key, value in entry.items():
        if key == "step":
            continue
        converted = number(value)
        if converted is None:
            reading.odd(line, f"{key} is no number ({json.dumps(value)[:40]})")
        else:
            values[columns[key]] = converted
    gathering.add(line, step, values)


def _entries(source: Source, text: str) -> Iterator[tuple[int, Any]]:
    """Yield the line and value of each entry of log_history, with an exception for a damaged one."""
    start = _HISTORY.search(text)
    if start is None:
        raise LogError(f"{source.path}: no log_history in it")
    decoder = json.JSONDecoder()
    position, line = start.end(), 1 + text.count("\n", 0, start.end())
    while True:
        between = _BETWEEN.match(text, position)
        assert between is not None, "it may be empty"
        begin = between.end()
        line += text.count("\n", position, begin)
        if text[begin : begin + 1] in ("", "]"):
            return
        try:
            entry, position = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            following = _NEXT.search(text, begin + 1)
            entry, position = error, following.start() if following else len(text)
        yield line, entry
        line += text.count("\n", begin, position)


def _states(folder: Path) -> list[Path]:
    return [*folder.glob(FILE), *sorted(folder.glob(f"checkpoint-*/{FILE}"))]


def _progress(path: Path) -> int:
    """Return the step at which a state was saved, -1 if unknown."""
    found = _STEP.search(path.read_text(errors="replace")) if path.is_file() else None
    return int(found[1]) if found else -1


FORMAT = Format("huggingface", "Hugging Face trainer_state.json", matches, read)
