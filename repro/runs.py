"""A run's folder, read; repro.train.run_folder writes it and says what is in each file.

What is wrong with a file becomes an Unreadable (see repro.loading), which names it.
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

# A continued run may differ from its beginning in these keys (and those below them), and in no other.
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
    """What a folder says of its run, finished or not."""

    path: Path
    config: dict[str, Any]  # flat
    summary: dict[str, Any] | None  # None: the run has not finished
    starts: list[dict[str, Any]]  # of environment.json

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl; a last line that is being written is left out."""
        return [record for _, record in read_records(self.path / METRICS)]

    @property
    def state(self) -> str:
        """Return finished, unfinished or diverged."""
        if self.summary is not None:
            return "finished"
        return "diverged" if (self.path / DIVERGED).exists() else "unfinished"

    @property
    def row(self) -> str | None:
        """The row of the ledger that it is of, None where it is of none."""
        name = self.config.get("row.name")
        return name if isinstance(name, str) else None

    @property
    def scale(self) -> str:
        """The scale of a row's run: paper or proxy."""
        return str(self.config.get("row.scale"))

    @property
    def identity(self) -> str:
        """The same text for runs that differ in the seed, and in what changes no result, at most."""
        counted = {key: value for key, value in self.config.items() if key != "seed" and not is_free(key)}
        return json.dumps(counted, sort_keys=True)

    @property
    def date(self) -> datetime:
        """When it was last started, or, where that is not recorded, when its newest file was written."""
        try:
            return datetime.fromisoformat(self.starts[-1]["time"]).astimezone(UTC)
        except (ValueError, KeyError, IndexError, TypeError, OverflowError):
            files = (self.path / name for name in (SUMMARY, CONFIG))
            return datetime.fromtimestamp(next(f for f in files if f.exists()).stat().st_mtime, UTC)


def read(folder: Path) -> Run:
    """Return a run.

    Raises:
        Unreadable: a file is damaged, or is not of a run; or there is no config.yaml.
    """
    return Run(folder, read_config(folder), read_summary(folder), read_starts(folder))


def read_config(folder: Path, cure: str = "") -> dict[str, Any]:
    """Return the configuration, flat; see read_tree."""
    return flatten(read_tree(folder, cure))


def read_tree(folder: Path, cure: str = "") -> dict[str, Any]:
    """Return the configuration as it is nested; keys that were renamed since have their new names.

    Args:
        cure: what to do about a file that cannot be read, for the message.
    """
    tree = read_yaml(folder / CONFIG, cure)
    for old, new in RENAMED.items():
        group, _, key = old.rpartition(".")
        node = tree.get(group) if group else tree
        if isinstance(node, dict) and key in node:
            node[new.rpartition(".")[2]] = node.pop(key)
    return tree


def read_summary(folder: Path, cure: str = "") -> dict[str, Any] | None:
    """Return the summary of a finished run, None for one that has not finished."""
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
    """Return what environment.json has of each start; nothing where there is no such file."""
    path = folder / ENVIRONMENT
    starts = read_json(path, list, cure) if path.exists() else []
    if not all(isinstance(start, dict) for start in starts):
        raise Unreadable(path, "not a list of starts", cure)
    return starts
