"""The page of the lab in Markdown, and all files of results/lab, from the records alone."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from benchmarks.comparison.design import REFERENCE
from benchmarks.comparison.measures import estimate, in_times
from benchmarks.comparison.records import Record, frame
from benchmarks.comparison.search import best, edges
from benchmarks.lab.claims import LARGER, claims
from benchmarks.lab.design import ALL_TASKS, LAB, LENGTHS, LONG, OPTIMIZERS, RUNGS, SEEDS, TASKS, TUNED
from benchmarks.lab.figures import draw_all
from benchmarks.lab.measures import (
    best_lr,
    best_lr_again,
    finals,
    ladder,
    least_multiplier,
    multiplier,
    trend,
)
from benchmarks.lab.predictions import PILOT, PILOTS, Prediction, Search, predicted, searches
from benchmarks.lab.todo import todo, tuned
from repro.plots import caption, save
from repro.results import table
from repro.train.run_folder import write_atomically

COMMAND = "python -m benchmarks.lab"
NEAR = 0.02  # share of the loss that a prediction may cost


def write(
    records: Sequence[Record], compared: Sequence[Record], predictions: Sequence[Prediction], folder: Path
) -> list[str]:
    """Write the page, the figures and the tidy table of all runs; return the names of the files.

    Args:
        compared: the records of the fair comparison, for its learning rates.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frame(records).to_csv(folder / "runs.csv", index=False)
    drawn = draw_all(records)
    figures = [path.name for name, figure in drawn.items() for path in save(figure, folder / name)]
    captions = {name: caption(figure) for name, figure in drawn.items()}
    write_atomically(folder / "README.md", summary(records, compared, predictions, captions).rstrip() + "\n")
    return ["README.md", "runs.csv", *figures]


def summary(
    records: Sequence[Record],
    compared: Sequence[Record],
    predictions: Sequence[Prediction],
    figures: Mapping[str, str],
) -> str:
    """Return the page, with the captions of its figures by name."""
    found = searches(records, compared)
    every = LAB.cells(ALL_TASKS, OPTIMIZERS)
    finished = sum(not todo(*cell, records) for cell in every)
    tables = {
        "multiplier": _markdown(_multipliers(records)),
        "final": _markdown(_finals(records)),
        "tuning": _markdown(_tuning(records)),
        "transfer": _markdown(_transfer(found, predictions)),
        "score": _score(found, predictions),
        "pilots": _markdown(_pilots(found, predictions)),
    }
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return template.get_template("page.md").render(
        command=COMMAND,
        runs=len(records),
        hours=sum(record.seconds for record in records) / 3600,
        left=f"Of {len(every)} cells (a task and an optimizer that is tuned) {finished} are finished; "
        f"`{COMMAND} --plan` says what is missing.",
        commits=", ".join(sorted({record.environment["commit"][:10] for record in records})),
        machines=", ".join(sorted({record.environment["machine"] for record in records})),
        torch=", ".join(sorted({record.environment["torch"] for record in records})),
        rungs=", ".join(f"{rung:,}" for rung in RUNGS),
        seeds=SEEDS,
        tuned=TUNED,
        long=LONG,
        pilot=PILOT,
        tables=tables,
        claims=claims(records, predictions),
        titles={name: task.title for name, task in ALL_TASKS.items()},
        figures=figures,
    )


def _multipliers(records: Sequence[Record]) -> list[list[str]]:
    rows = [["task", "optimizer", *(f"{steps:,} steps" for steps in LENGTHS), "trend", "power"]]
    for task in TASKS:
        for name, about in OPTIMIZERS.items():
            if name == REFERENCE:
                continue
            found = [multiplier(records, task, name, steps) for steps in LENGTHS]
            if not any(found):
                continue
            cells = [
                "" if each is None else in_times(each, list(ladder(records, task, steps)))
                for steps, each in zip(LENGTHS, found, strict=True)
            ]
            grows = trend(records, task, name)
            least = [
                f"{x:.2f}"
                for steps in LENGTHS
                if (x := least_multiplier(records, task, name, steps)) is not None
            ]
            rows.append([
                TASKS[task].title, about.title, *cells, "" if grows is None else grows.format(".2f"),
                ", ".join(least),
            ])  # fmt: skip
    return rows


def _finals(records: Sequence[Record]) -> list[list[str]]:
    rows = [["task", "optimizer", *(f"{steps:,}" for steps in RUNGS)]]
    for task, task_about in TASKS.items():
        for name, about in OPTIMIZERS.items():
            found = [list(finals(records, task, name, steps).values()) for steps in RUNGS]
            if any(found):
                cells = [estimate(of).format() if of else "" for of in found]
                rows.append([task_about.title, about.title, *cells])
    return rows


def _tuning(records: Sequence[Record]) -> list[list[str]]:
    rows = [
        ["task", "optimizer", "lr", "interpolated", "weight decay", "points", "optimum", f"lr at {LONG:,}"]
    ]
    for task, about in ALL_TASKS.items():
        for name, optimizer in OPTIMIZERS.items():
            losses = {} if optimizer.of else tuned(records, task, name)
            if not losses:
                continue
            point, lr = best(losses), best_lr(records, task, name)
            longest = best_lr_again(records, task, name)
            rows.append([
                about.title, optimizer.title, f"{LAB.space(task, name).lr(point.octave):g}",
                "" if lr is None else f"{lr:.2g}",
                f"{point.weight_decay:g}", str(len(losses)),
                "search not finished" if lr is None
                else ", ".join(edges(LAB.space(task, name), losses)) or "interior",
                "" if longest is None else f"{longest:.2g}",
            ])  # fmt: skip
    return rows


def _transfer(found: Sequence[Search], predictions: Sequence[Prediction]) -> list[list[str]]:
    head = ["task", "steps", "predicted", "tuned", "closed form", "loss at predicted", f"at {LARGER:g} times"]
    rows = [head]
    for search in found:
        if (guess := predicted(predictions, search.name)) is not None:
            changes = [search.change(factor) for factor in (guess.factor, LARGER)]
            shown = ["beyond" if change is None else f"{change:+.1%}" for change in changes]
            numbers = [guess.factor, search.ratio, guess.closed_form]
            rows.append([search.title, f"{search.steps:,}", *(f"{x:.2f}" for x in numbers), *shown])
    return rows


def _score(found: Sequence[Search], predictions: Sequence[Prediction]) -> str:
    """Return in words how often the predictions are good enough, and better than LARGER times."""
    known = [(search, predicted(predictions, search.name)) for search in found]
    pairs = [
        [x if x is not None else math.inf for x in (search.change(guess.factor), search.change(LARGER))]
        for search, guess in known
        if guess is not None
    ]
    near, ahead = sum(ours <= NEAR for ours, _ in pairs), sum(ours < other for ours, other in pairs)
    return (
        f"The loss at the predicted learning rate is within {NEAR:.0%} of the best one on {near} of "
        f"{len(pairs)} tasks, and lower than at {LARGER:g} times AdamW's on {ahead}."
    )


def _pilots(found: Sequence[Search], predictions: Sequence[Prediction]) -> list[list[str]]:
    rows = [["task", *(f"{pilot:,} steps" for pilot in PILOTS)]]
    for search in found:
        guesses = [predicted(predictions, search.name, pilot) for pilot in PILOTS]
        if any(guesses):
            cells = [
                "" if p is None else f"{p.factor:.2f}; {p.closed_form:.2f} at s = {p.noise:.2g}"
                for p in guesses
            ]
            rows.append([search.title, *cells])
    return rows


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return table(rows[0], rows[1:]) if len(rows) > 1 else "Not run yet."
