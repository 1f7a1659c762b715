"""Our own finished runs of the ledger's rows, found in run folders (see repro.run)."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from repro.ledger import Figure, Recipe
from repro.run import flatten, is_free, read_config

SHOWN_CHANGES = 3  # settings that a result names; its folder's config.yaml has them all


@dataclass
class Own:
    """A finished run of a row."""

    path: Path
    row: str
    scale: str  # paper | proxy
    date: datetime  # of its last start, or of its end where that is not recorded
    config: dict[str, Any]  # flat
    summary: dict[str, Any]

    def changed(self, recipe: Recipe) -> list[str]:
        """Return the settings, as flat keys, that are not the row's; without those that change no result."""
        paper = flatten(recipe.config)
        both = self.config.keys() & paper.keys()  # a newer version may have settings that the run had not
        return sorted(key for key in both if not is_free(key) and self.config[key] != paper[key])

    def value(self, figure: Figure | None) -> tuple[str, float] | None:
        """Return a metric and its value: the published one, best or final as that was, or the run's own."""
        record = self.summary["best" if figure is not None and figure.shows == "best" else "final"] or {}
        metric = figure.metric if figure is not None and figure.metric in record else self.summary["metric"]
        return (metric, record[metric]) if metric in record else None

    def describe(self, recipe: Recipe) -> str:
        """Return the result in a few words, with what keeps it from being the paper's."""
        figure = recipe.row.published[0] if recipe.row.published else None
        found = self.value(figure)
        result = "no result"
        if found is not None:
            known = figure is not None and found[0] == figure.metric
            result = f"{found[1]:.4g}" if known else f"{found[0]} {found[1]:.4g}"
        scale = self.scale
        if scale == "paper" and (changed := self.changed(recipe)):
            more = len(changed) - SHOWN_CHANGES
            scale = f"other {', '.join(changed[:SHOWN_CHANGES])}" + (f" and {more} more" if more > 0 else "")
        return f"{result} ({scale}; {self.date:%Y-%m-%d})"


def runs(roots: Iterable[Path]) -> list[Own]:
    """Return the finished runs of rows in and below folders; other folders are passed over."""
    found = []
    for path in sorted({path.resolve() for root in roots for path in root.rglob("summary.json")}):
        try:
            summary = json.loads(path.read_text())
            config = read_config(path.parent / "config.yaml")
            row, scale = config["row.name"], config["row.scale"]
        except (OSError, ValueError, KeyError):
            continue
        found.append(Own(path.parent, row, scale, _date(path), config, summary))
    return found


def last(found: Iterable[Own], row: str) -> Own | None:
    """Return a row's newest run; a proxy's only where there is no other."""
    of_row = [own for own in found if own.row == row]
    return max(of_row, key=lambda own: (own.scale == "paper", own.date), default=None)


def _date(path: Path) -> datetime:
    try:
        starts = json.loads((path.parent / "environment.json").read_text())
        return datetime.fromisoformat(starts[-1]["time"]).astimezone(UTC)
    except (OSError, ValueError, KeyError, IndexError):
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
