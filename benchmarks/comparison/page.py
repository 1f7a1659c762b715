"""The tables of the comparison in Markdown, and all files of results/comparison, from the records alone."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jinja2

from benchmarks.comparison.claims import claims
from benchmarks.comparison.design import COMPARISON, LADDER, OPTIMIZERS, REFERENCE, SEEDS, TASKS, TUNING_SEED
from benchmarks.comparison.figures import draw_all, finished_tasks
from benchmarks.comparison.measures import (
    best_point,
    divergence,
    estimate,
    finals,
    in_times,
    multiplier,
    speed_up,
    tolerated,
    winner,
)
from benchmarks.comparison.records import COMMAND, Record, Stage, frame, select
from benchmarks.comparison.search import edges
from benchmarks.comparison.times import Time, ratio
from benchmarks.comparison.todo import Job, todo, tuned
from repro.plots import caption, save
from repro.results import table
from repro.train.run_folder import write_atomically

WITHIN = 0.01  # of the best loss: the range of learning rates in the table


def write(records: Sequence[Record], times: Sequence[Time], folder: Path) -> list[str]:
    """Write tables, figures and the tidy table of all runs; return the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    frame(records).to_csv(folder / "runs.csv", index=False)
    drawn = draw_all(records)
    figures = [path.name for name, figure in drawn.items() for path in save(figure, folder / name)]
    pages = {
        "README.md": summary(records, times, {name: caption(figure) for name, figure in drawn.items()}),
        "tuning.md": tuning(records),
    }
    for name, text in pages.items():
        write_atomically(folder / name, text.rstrip() + "\n")
    return [*pages, "runs.csv", *figures]


def summary(records: Sequence[Record], times: Sequence[Time], figures: Mapping[str, str]) -> str:
    """Return the README, with the captions of its figures by name."""
    tasks = finished_tasks(records)
    every = COMPARISON.cells(COMPARISON.tasks, OPTIMIZERS)
    reasons = [
        f"{about.title} on {' and '.join(TASKS[task].title for task in about.without)} ({about.why})"
        for about in OPTIMIZERS.values()
        if about.without
    ]
    settings = [
        f"{about.title} `{' '.join(about.overrides)}`"
        for about in OPTIMIZERS.values()
        if about.overrides and not about.of
    ]
    tables = {
        "final": _markdown(final_losses(records)),
        "multiplier": _markdown(multipliers(records)),
        "seconds": _markdown(_matrix(tasks, lambda task, name: _in_seconds(records, times, task, name))),
        "speed_up": _markdown(_matrix(tasks, lambda task, name: _speed_up(records, times, task, name))),
        "half": _markdown(_matrix(tasks, lambda task, name: _half(records, task, name))),
        "costs": _costs(records, times, tasks),
    }
    return _template("page.md").render(
        command=COMMAND,
        runs=len(records),
        hours=sum(record.seconds for record in records) / 3600,
        cells=len(every),
        finished=sum(not todo(*pair, records) for pair in every),
        commits=_distinct(record.environment["commit"][:10] for record in records),
        machines=_distinct(record.environment["machine"] for record in records),
        torch=_distinct(record.environment["torch"] for record in records),
        seeds=SEEDS,
        tuning_seed=TUNING_SEED,
        within=WITHIN,
        ladder=LADDER,
        tables=tables if tasks else None,
        without="; ".join(reasons),
        settings="; ".join(settings),
        budgets=_budgets(),
        claims=claims(records),
        titles={name: task.title for name, task in COMPARISON.tasks.items()},
        figures=figures,
    )


def _budgets() -> str:
    """Return in words the most runs that a search may take."""
    found: dict[int, list[str]] = {}
    for about in OPTIMIZERS.values():
        if about.space is not None:
            found.setdefault(about.space.budget, []).append(about.title)
    return "; ".join(f"{budget} for {', '.join(titles)}" for budget, titles in found.items())


def tuning(records: Sequence[Record]) -> str:
    """Return the page with the outcome of each search, and the command of each result."""
    rows = [["task", "optimizer", "lr", "weight decay", "runs", "optimum", "command"]]
    for task, searched in COMPARISON.cells(COMPARISON.tasks, OPTIMIZERS):
        for name in COMPARISON.variants(task, searched):
            if (point := best_point(records, task, name)) is None:
                continue
            about, optimizer = COMPARISON.space(task, name), OPTIMIZERS[name]
            losses = tuned(records, task, name)
            job = Job(task, name, Stage.SEEDS, point.weight_decay, (point.octave,), optimizer.seeds)
            lr = f"{about.lr(point.octave):g}"
            words = ["python", COMPARISON.tasks[task].script, "-m", *job.words, f"optimizer.lr={lr}"]
            where = ", ".join(edges(about, losses)) or "interior"
            if not finals(records, task, searched):
                where = "search not finished"
            tried = str(len(losses))
            if optimizer.of:
                tried, where = "", f"as {optimizer.of}"
            command = f"`{' '.join(words)} seed={','.join(map(str, job.seeds))}`"
            rows.append([task, name, lr, f"{point.weight_decay:g}", tried, where, command])
    return _template("tuning.md").render(command=COMMAND, table=_markdown(rows))


def final_losses(records: Sequence[Record]) -> list[list[str]]:
    """Return the table of final losses, optimizers by tasks, as its head and its rows."""
    return _matrix(finished_tasks(records), lambda task, name: _final(records, task, name))


def multipliers(records: Sequence[Record]) -> list[list[str]]:
    """Return the table of step multipliers, in the same form."""
    return _matrix(finished_tasks(records), lambda task, name: _multiplier(records, task, name))


def _final(records: Sequence[Record], task: str, name: str) -> str:
    losses = finals(records, task, name)
    if not losses:
        return ""
    text = estimate(losses).format() + (f" [{len(losses)}]" if len(losses) < len(SEEDS) else "")
    return f"**{text}**" if name == winner(records, task) else text


def _multiplier(records: Sequence[Record], task: str, name: str) -> str:
    found = multiplier(records, task, name)
    return "" if found is None else in_times(found)


def _in_seconds(records: Sequence[Record], times: Sequence[Time], task: str, name: str) -> str:
    found, slower = multiplier(records, task, name), ratio(times, task, name)
    if found is None or slower is None:
        return ""
    if not found.mean:
        return f"< {LADDER[0] / slower:.2f}"
    if math.isinf(found.mean):
        return f"> {LADDER[-1] / slower:.2f}"
    return f"{found.mean / slower:.2f}"


def _speed_up(records: Sequence[Record], times: Sequence[Time], task: str, name: str) -> str:
    found, slower = speed_up(records, task, name), ratio(times, task, name)
    if not found:
        return "" if found is None else "-"
    return f"{found:.2f}" + ("" if slower is None else f" ({found / slower:.2f})")


def _half(records: Sequence[Record], task: str, name: str) -> str:
    half, whole = finals(records, task, name, Stage.HALF), finals(records, task, REFERENCE)
    if not half:
        return ""
    change = statistics.fmean(half) / statistics.fmean(whole) - 1
    return f"{change:+.1%}" if math.isfinite(change) else "diverged"


def _costs(records: Sequence[Record], times: Sequence[Time], tasks: Sequence[str]) -> str:
    rows = [["", "octaves", "failed", "state, B/parameter", "step time", "interior optima"]]
    for name, optimizer in OPTIMIZERS.items():
        seen = [task for task in tasks if COMPARISON.works(task, name) and finals(records, task, name)]
        runs = [run for task in seen for run in select(records, task=task, optimizer=name)]
        sizes = [run.state_bytes / run.parameters for run in runs if run.parameters]
        slower = [found for task in seen if (found := ratio(times, task, name)) is not None]
        tries = list(_robustness(records, seen, name)) if seen and not optimizer.of else [""] * 3
        rows.append([
            optimizer.title, *tries[:2], f"{statistics.median(sizes):.2f}" if sizes else "",
            f"{statistics.median(slower):.2f}" if slower else "", tries[2],
        ])  # fmt: skip
    return _markdown(rows)


def _robustness(records: Sequence[Record], tasks: Sequence[str], name: str) -> Iterator[str]:
    searches = [(COMPARISON.space(task, name), tuned(records, task, name)) for task in tasks]
    yield f"{statistics.median(tolerated(losses, about, WITHIN).octaves for about, losses in searches):.1f}"
    counts = [divergence(records, task, name) for task in tasks]
    yield f"{sum(failed for failed, _ in counts)} of {sum(tried for _, tried in counts)}"
    yield f"{sum(not edges(about, losses) for about, losses in searches)} of {len(tasks)}"


def _matrix(tasks: Sequence[str], cell: Callable[[str, str], str]) -> list[list[str]]:
    """Return a table of optimizers by tasks."""
    rows = [["", *(TASKS[task].title for task in tasks)]]
    for name, optimizer in OPTIMIZERS.items():
        found = [cell(task, name) if COMPARISON.works(task, name) else "n/a" for task in tasks]
        rows.append([optimizer.title, *found])
    return rows


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return table(rows[0], rows[1:])


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))


def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    ).get_template(name)
