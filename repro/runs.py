"""Read the folder of a run; repro.train.run_folder writes it and documents its files.

A problem with a file raises Unreadable (see repro.loading), which names the file.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from repro.loading import Unreadable, read_json, read_records, read_yaml
from repro.train.renamed import RENAMED

CONFIG, ENVIRONMENT, SUMMARY, DIVERGED = "config.yaml", "environment.json", "summary.json", "diverged.json"
METRICS, SPEED = LOGS = ("metrics.jsonl", "speed.jsonl")

# The only keys (with those below them) that may change when a run is continued.
FREE_KEYS = ("run", "tracking", "workers", "data.root", "row")


def is_free(key: str) -> bool:
    """Return whether a continued run may change `key` (dotted)."""
    return any(key == free or key.startswith(free + ".") for free in FREE_KEYS)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": value} for {"a": {"b": value}}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@dataclass(frozen=True)
class Run:
    """The contents of a run's folder, finished or not."""

    path: Path
    config: dict[str, Any]  # flat
    summary: dict[str, Any] | None  # None: the run has not finished
    starts: list[dict[str, Any]]  # from environment.json

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, without an incomplete last line."""
        return [record for _, record in read_records(self.path / METRICS)]

    @property
    def state(self) -> str:
        """finished, unfinished or diverged."""
        if self.summary is not None:
            return "finished"
        return "diverged" if (self.path / DIVERGED).exists() else "unfinished"

    @property
    def row(self) -> str | None:
        """The row of the ledger that the run reproduces, or None."""
        name = self.config.get("row.name")
        return name if isinstance(name, str) else None

    @property
    def scale(self) -> str:
        """The scale of a row's run: paper or proxy."""
        return str(self.config.get("row.scale"))

    @property
    def identity(self) -> str:
        """A text that is equal for runs that differ only in the seed and in keys that change no result."""
        counted = {key: value for key, value in self.config.items() if key != "seed" and not is_free(key)}
        return json.dumps(counted, sort_keys=True)

    @property
    def date(self) -> datetime:
        """The time of its last start, or if that is not recorded, of its summary or configuration."""
        try:
            return datetime.fromisoformat(self.starts[-1]["time"]).astimezone(UTC)
        except (ValueError, KeyError, IndexError, TypeError, OverflowError):
            files = (self.path / name for name in (SUMMARY, CONFIG))
            return datetime.fromtimestamp(next(f for f in files if f.exists()).stat().st_mtime, UTC)


def read(folder: Path) -> Run:
    """Return a run.

    Raises:
        Unreadable: a file is damaged or not of a run, or there is no config.yaml.
    """
    return Run(folder, read_config(folder), read_summary(folder), read_starts(folder))


def read_config(folder: Path, cure: str = "") -> dict[str, Any]:
    """Return the configuration, flat; see read_tree."""
    return flatten(read_tree(folder, cure))


def read_tree(folder: Path, cure: str = "") -> dict[str, Any]:
    """Return the nested configuration; renamed keys get their new names.

    Args:
        cure: advice for the error message.
    """
    tree = read_yaml(folder / CONFIG, cure)
    for old, new in RENAMED.items():
        group, _, key = old.rpartition(".")
        node = tree.get(group) if group else tree
        if isinstance(node, dict) and key in node:
            node[new.rpartition(".")[2]] = node.pop(key)
    return tree


def read_summary(folder: Path, cure: str = "") -> dict[str, Any] | None:
    """Return the summary of a finished run, or None."""
    path = folder / SUMMARY
    if not path.exists():
        return None
    summary = read_json(path, dict, cure)
    if not isinstance(summary.get("metric"), str):
        raise Unreadable(path, "not of a run (it names no metric)", cure)
    if not all(isinstance(summary.get(key, ""), dict | None) for key in ("best", "final")):
        raise Unreadable(path, "not of a run (its best and final are not records)", cure)
    return summary


def read_starts(folder: Path, cure: str = "") -> list[dict[str, Any]]:
    """Return the entries of environment.json, one per start; empty without that file."""
    path = folder / ENVIRONMENT
    starts = read_json(path, list, cure) if path.exists() else []
    if not all(isinstance(start, dict) for start in starts):
        raise Unreadable(path, "not a list of starts", cure)
    return starts


def sample_rate(record: dict[str, Any]) -> tuple[str, float]:
    """Return the unit of speed, in the plural, and the number per second.

    Args:
        record: a line of speed.jsonl, a summary, or anything else with the numbers of `Throughput.rates`.

    Raises:
        KeyError: the record has no speed.
    """
    for key, value in record.items():
        unit = key.removesuffix("_per_second")
        if unit not in (key, "tflop"):
            return unit, value
    raise KeyError("no number of samples per second")
