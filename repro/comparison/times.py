"""How long a training step takes, measured for all optimizers of a task in turns on a quiet machine."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repro.comparison.design import REFERENCE
from repro.errors import UserError


@dataclass(frozen=True)
class Time:
    """Seconds of a training step, the median over a run."""

    task: str
    optimizer: str
    round: int
    seconds: float
    steps: int
    environment: dict[str, Any]


class Times:
    """All measurements of a file."""

    def __init__(self, measured: Sequence[Time]) -> None:
        self.measured = measured

    def ratio(self, task: str, optimizer: str) -> float | None:
        """Return the time of a step over AdamW's, the median over the rounds; None if one is not measured."""
        rounds = {(time.optimizer, time.round): time.seconds for time in self.measured if time.task == task}
        ratios = [
            seconds / rounds[REFERENCE, number]
            for (name, number), seconds in rounds.items()
            if name == optimizer and (REFERENCE, number) in rounds
        ]
        return statistics.median(ratios) if ratios else None


def load(path: Path) -> Times:
    """Return the measurements of a file; none where there is none.

    Raises:
        UserError: a line cannot be read; it is named.
    """
    measured = []
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            measured.append(Time(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: line {number} is no time ({error}); repair or delete it") from error
    return Times(measured)


def append(path: Path, time: Time) -> None:
    """Add a measurement."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(time)) + "\n")
