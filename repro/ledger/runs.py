"""Our own finished runs, those of ledger rows among them."""

from collections.abc import Iterable
from pathlib import Path

from repro.errors import UserError
from repro.ledger.rows import Figure, Recipe
from repro.runs import CONFIG, SUMMARY, Run, flatten, is_free, read

SHOWN_CHANGES = 3  # settings that a result names; its folder's config.yaml has them all


def finished(roots: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Return the finished runs in and below folders, and a line for each that cannot be read.

    Summaries without a config.yaml next to them are not of training, and are passed over.
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
    """Return the finished runs of rows in and below folders; other folders are passed over."""
    return [run for run in finished(roots)[0] if run.row is not None]


def last(found: Iterable[Run], row: str) -> Run | None:
    """Return a row's newest run; a proxy's only where there is no other."""
    of_row = [run for run in found if run.row == row]
    return max(of_row, key=lambda run: (run.scale == "paper", run.date), default=None)


def changed(run: Run, recipe: Recipe) -> list[str]:
    """Return the settings, as flat keys, that are not the row's; without those that change no result."""
    paper = flatten(recipe.config)
    both = run.config.keys() & paper.keys()  # a newer version may have settings that the run had not
    return sorted(key for key in both if not is_free(key) and run.config[key] != paper[key])


def value(run: Run, figure: Figure | None) -> tuple[str, float] | None:
    """Return a metric and its value: the published one, best or final as that was, or the run's own."""
    assert run.summary is not None
    record = run.summary["best" if figure is not None and figure.shows == "best" else "final"] or {}
    metric = figure.metric if figure is not None and figure.metric in record else run.summary["metric"]
    return (metric, record[metric]) if metric in record else None


def describe(run: Run, recipe: Recipe) -> str:
    """Return the result in a few words, with what keeps it from being the paper's."""
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
