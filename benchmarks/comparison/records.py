"""Finished runs of the comparison: one line of JSON each, appended as they end, never changed."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.errors import UserError
from repro.ledger.rows import ROOT
from repro.loading import read_json, read_lines
from repro.publish import append_line
from repro.runs import DIVERGED, Run, read

if TYPE_CHECKING:
    import pandas as pd

COMMAND = "python -m benchmarks.comparison"
RECORDS = ROOT / "results" / "comparison" / "runs.jsonl"


class Stage(StrEnum):
    """The purpose of a run; other stages are names of experiments."""

    TUNE = "tune"
    SEEDS = "seeds"
    HALF = "half"
    LADDER = "ladder"  # the reference at other lengths
    UNTUNED = "untuned"  # at the first point of the search, where the best one is another


@dataclass(frozen=True)
class Record:
    """A run that ended.

    Attributes:
        stage: tune, seeds, half, ladder, untuned, or the name of an experiment.
        variant: of the experiment; of the ladder, the length as a factor of the task's.
        octave: of the learning rate, see Space.
        overrides: the words of the recipe's command line, without `seed`.
        config_hash: of the resolved configuration, without the seed and keys that change no result.
        curve: pairs of a step and the validation loss there.
        final: the last validation loss; infinite for a run that diverged.
        test: figures on the test set with the best weights, if the task has a test set.
        diverged: the step with the first loss that was not finite.
        seconds: of the whole run, on a machine that may have been busy.
    """

    task: str
    optimizer: str
    stage: str
    variant: str
    octave: int
    lr: float
    weight_decay: float
    seed: int
    overrides: tuple[str, ...]
    config_hash: str
    curve: tuple[tuple[int, float], ...]
    final: float
    test: dict[str, float]
    steps: int
    diverged: int | None
    parameters: int
    state_bytes: int
    seconds: float
    environment: dict[str, Any]


def load(path: Path) -> list[Record]:
    """Return the runs so far; none if the file does not exist.

    Raises:
        UserError: a line cannot be read; it is named. A last line that a kill left incomplete is passed over.
    """
    return [record for _, record in read_lines(path, _record)]


def _record(values: dict[str, Any]) -> Record:
    curve = tuple((step, _number(loss)) for step, loss in values["curve"])
    changed = {"overrides": tuple(values["overrides"]), "curve": curve, "final": _number(values["final"])}
    return Record(**values | changed)


def append(path: Path, record: Record) -> None:
    """Add a run; several processes may do so at once."""
    curve = [(step, _json(loss)) for step, loss in record.curve]
    append_line(path, asdict(record) | {"final": _json(record.final), "curve": curve})


def outcome(folder: Path) -> dict[str, Any]:
    """Return the fields of a Record that a run folder determines.

    Raises:
        UserError: the run neither ended nor diverged.
    """
    run = read(folder)
    if run.state == "unfinished":
        raise UserError(f"{folder}: the run did not end; its own message says why")
    about = run.summary or {}
    lost = None if about else read_json(folder / DIVERGED, dict)["step"]
    curve = tuple((r["step"], round(r["valid_loss"], 6)) for r in run.records if "valid_loss" in r)
    return {
        "config_hash": config_hash(run),
        "curve": curve,
        "final": curve[-1][1] if about and math.isfinite(curve[-1][1]) else math.inf,
        "test": {key: value for key, value in about.get("test", {}).items() if key.startswith("test_")},
        "steps": about["steps"] if about else lost,
        "diverged": lost,
        "parameters": about.get("parameters", 0),
        "state_bytes": about.get("state_bytes", 0),
        "seconds": about.get("seconds", 0.0),
        "environment": where(run.starts[-1]),
    }


def frame(records: Iterable[Record]) -> "pd.DataFrame":
    """Return the runs as a tidy table, one row each, without their curves."""
    import pandas as pd

    rows = []
    for record in records:
        row = asdict(record)
        test, about = row.pop("test"), row.pop("environment")
        row["overrides"] = " ".join(row["overrides"])
        del row["curve"]
        rows.append(row | test | about)
    return pd.DataFrame(rows)


def select(records: Sequence[Record], **wanted: Any) -> list[Record]:
    """Return the records whose fields have these values."""
    found = list(records)
    for key, value in wanted.items():
        found = [record for record in found if getattr(record, key) == value]
    return found


def config_hash(run: Run) -> str:
    """Return 12 hexadecimal digits that are the same for runs that differ at most in the seed."""
    return hashlib.sha256(run.identity.encode()).hexdigest()[:12]


def where(start: Mapping[str, Any]) -> dict[str, Any]:
    """Return commit, machine, threads, torch and time of a start, see repro.environment."""
    return {
        "commit": start["commit"],
        "machine": ", ".join([start["system"], start["cpu"], *start["cuda"]]),
        "threads": start["threads"],
        "torch": start["versions"]["torch"],
        "time": start["time"],
    }


def _number(value: float | None) -> float:
    return math.inf if value is None else value


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
