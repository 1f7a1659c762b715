"""Find and describe our own finished runs, including those of ledger rows."""

from collections.abc import Iterable
from pathlib import Path

from repro.errors import UserError
from repro.ledger.rows import Figure, Recipe
from repro.runs import CONFIG, SUMMARY, Run, flatten, is_free, read

SHOWN_CHANGES = 3  # changed settings that are listed; config.yaml has them all


def finished(roots: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Return the finished runs in and below some folders, and a line for each that cannot be read.

    A summary without a config.yaml next to it is not of a training run, and is skipped.
    """
    found, problems = [], []
    for folder in sorted({path.resolve().parent for root in roots for path in root.rglob(SUMMARY)}):
        if not (folder / CONFIG).exists():
            continue
        try:
            found.append(read(folder))
        except UserError as error:
            problems.append(str(error))
    return found, problems


def of_rows(roots: Iterable[Path]) -> list[Run]:
    """Return the finished runs of ledger rows in and below some folders, without those that are damaged."""
    return [run for run in finished(roots)[0] if run.row is not None]


def last(found: Iterable[Run], row: str) -> Run | None:
    """Return the newest run of a row; a proxy's only if there is no other."""
    of_row = [run for run in found if run.row == row]
    return max(of_row, key=lambda run: (run.scale == "paper", run.date), default=None)


def changed(run: Run, recipe: Recipe) -> list[str]:
    """Return the flat keys of settings that differ from the row's and can change the result."""
    paper = flatten(recipe.config)
    both = run.config.keys() & paper.keys()  # the version of the run may not have had all settings
    return sorted(key for key in both if not is_free(key) and run.config[key] != paper[key])


def value(run: Run, figure: Figure | None) -> tuple[str, float] | None:
    """Return a metric and its value, best or final as published: of `figure`, or else the run's own."""
    assert run.summary is not None
    record = run.summary["best" if figure is not None and figure.shows == "best" else "final"] or {}
    metric = figure.metric if figure is not None and figure.metric in record else run.summary["metric"]
    return (metric, record[metric]) if metric in record else None


def describe(run: Run, recipe: Recipe) -> str:
    """Return the result in a few words, with its differences from the row."""
    figure = recipe.row.published[0] if recipe.row.published else None
    found = value(run, figure)
    result = "no result"
    if found is not None:
        known = figure is not None and found[0] == figure.metric
        result = f"{found[1]:.4g}" if known else f"{found[0]} {found[1]:.4g}"
    scale = run.scale
    if scale == "paper" and (keys := changed(run, recipe)):
        more = len(keys) - SHOWN_CHANGES
        scale = f"other {', '.join(keys[:SHOWN_CHANGES])}" + (f" and {more} more" if more > 0 else "")
    return f"{result} ({scale}; {run.date:%Y-%m-%d})"
