"""The time of training, measured for all optimizers of a task in turns on a quiet machine."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparison.design import REFERENCE
from repro.loading import read_lines, read_records
from repro.publish import append_line
from repro.runs import SPEED, sample_rate


@dataclass(frozen=True)
class Time:
    """Seconds of training per image, example or token, over the later steps of a short run."""

    task: str
    optimizer: str
    round: int
    seconds: float
    environment: dict[str, Any]


def ratio(times: Sequence[Time], task: str, optimizer: str) -> float | None:
    """Return the time over AdamW's, the median of the rounds; None if one was not measured."""
    rounds = {(time.optimizer, time.round): time.seconds for time in times if time.task == task}
    ratios = [
        seconds / rounds[REFERENCE, number]
        for (name, number), seconds in rounds.items()
        if name == optimizer and (REFERENCE, number) in rounds
    ]
    return statistics.median(ratios) if ratios else None


def load(path: Path) -> list[Time]:
    """Return the measurements of a file; none if it does not exist.

    Raises:
        UserError: a line cannot be read; it is named.
    """
    return [time for _, time in read_lines(path, lambda values: Time(**values))]


def seconds(folder: Path) -> float:
    """Return the seconds of training per sample in a run folder, without its first record."""
    windows = [window for _, window in read_records(folder / SPEED)]
    return statistics.fmean(1 / rate for _, rate in map(sample_rate, windows[1:]))


def append(path: Path, time: Time) -> None:
    """Add a measurement."""
    append_line(path, asdict(time))
