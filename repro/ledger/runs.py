"""Our own finished runs, those of ledger rows included, found in run folders (see repro.train.run_folder)."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from repro.errors import UserError
from repro.ledger.rows import Figure, Recipe
from repro.loading import Unreadable, read_json
from repro.train.run_folder import flatten, is_free, read_config

SHOWN_CHANGES = 3  # settings that a result names; its folder's config.yaml has them all


@dataclass
class Finished:
    """A finished run, of a row or not."""

    path: Path
    config: dict[str, Any]  # flat
    summary: dict[str, Any]
    starts: list[dict[str, Any]]  # of environment.json


@dataclass
class FinishedRun:
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


def finished(roots: Iterable[Path]) -> tuple[list[Finished], list[str]]:
    """Return the finished runs in and below folders, and a line for each that cannot be read.

    Summaries without a config.yaml next to them are not of training, and are passed over.
    """
    found, problems = [], []
    for path in sorted({path.resolve() for root in roots for path in root.rglob("summary.json")}):
        folder = path.parent
        if not (folder / "config.yaml").exists():
            continue
        try:
            summary, config = read_json(path, dict), read_config(folder / "config.yaml")
            starts = folder / "environment.json"
            began = read_json(starts, list) if starts.exists() else []
            if not all(isinstance(start, dict) for start in began):
                raise Unreadable(starts, "not a list of starts")
            if not isinstance(summary["metric"], str):
                raise TypeError("its metric is not a name")
            if not all(isinstance(summary[key], dict | None) for key in ("best", "final")):
                raise TypeError("its best and final are not records")
        except UserError as error:
            problems.append(str(error))
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{path}: not of a run ({error})")
        else:
            found.append(Finished(folder, config, summary, began))
    return found, problems


def of_rows(found: Iterable[Finished]) -> list[FinishedRun]:
    """Return those of finished runs that are of a row; they have its name and scale."""
    return [
        FinishedRun(run.path, row, str(run.config.get("row.scale")), _date(run), run.config, run.summary)
        for run in found
        if isinstance(row := run.config.get("row.name"), str)
    ]


def runs(roots: Iterable[Path]) -> list[FinishedRun]:
    """Return the finished runs of rows in and below folders; other folders are passed over."""
    return of_rows(finished(roots)[0])


def last(found: Iterable[FinishedRun], row: str) -> FinishedRun | None:
    """Return a row's newest run; a proxy's only where there is no other."""
    of_row = [own for own in found if own.row == row]
    return max(of_row, key=lambda own: (own.scale == "paper", own.date), default=None)


def _date(run: Finished) -> datetime:
    try:
        return datetime.fromisoformat(run.starts[-1]["time"]).astimezone(UTC)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError):
        return datetime.fromtimestamp((run.path / "summary.json").stat().st_mtime, UTC)
