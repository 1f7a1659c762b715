"""Figures of the comparison."""

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import product

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from benchmarks.comparison.design import BATCH_TASKS, BATCHES, OPTIMIZERS, REFERENCE, TASKS
from benchmarks.comparison.measures import (
    best_point,
    estimate,
    finals,
    profile,
    speed_up,
    target,
)
from benchmarks.comparison.records import Record, Stage, select
from benchmarks.comparison.todo import space, tuned, works
from repro.ledger.charts import STYLE

LOUD = {"adan": "#d1495b", REFERENCE: "#0b84c6"}  # drawn in front of the others
QUIET = (
    "#1a9e6b", "#e07b00", "#8f7ae0", "#c4549a", "#b8860b",
    "#5f8a8b", "#7a5c3e", "#6b8e23", "#4b5563", "#a0a0a0",
)  # fmt: skip
LINES = ("-", "-.")  # twenty optimizers have ten colours twice, the second time with dashes
CODES = dict(zip((name for name in OPTIMIZERS if name not in LOUD), product(LINES, QUIET), strict=False))
COLOURS = LOUD | {name: colour for name, (_, colour) in CODES.items()}
DASHES = dict.fromkeys(LOUD, "-") | {name: line for name, (line, _) in CODES.items()}


def draw_all(records: Sequence[Record]) -> dict[str, Figure]:
    """Return every figure for which there are enough records, by name."""
    figures: dict[str, Callable[[Sequence[Record]], Figure | None]] = {
        "headline": headline,
        "curves": curves,
        "learning_rates": learning_rates,
        "batches": batches,
    }
    with mpl.rc_context(STYLE):
        drawn = {name: draw(records) for name, draw in figures.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def finished_tasks(records: Sequence[Record]) -> list[str]:
    """Return the tasks with results of AdamW and Adan."""
    return [task for task in TASKS if finals(records, task, REFERENCE) and finals(records, task, "adan")]


def headline(records: Sequence[Record]) -> Figure | None:
    """Draw losses compared with AdamW's on every task, and profiles of the steps to AdamW's loss."""
    tasks = finished_tasks(records)
    if not tasks:
        return None
    names = [name for name in OPTIMIZERS if any(finals(records, task, name) for task in tasks)]
    figure = Figure(figsize=(10, 0.3 * len(names) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _losses(left, records, tasks, names)
    _profiles(right, records, tasks, names)
    return figure


def _losses(axes: Axes, records: Sequence[Record], tasks: Sequence[str], names: Sequence[str]) -> None:
    markers = dict(zip(TASKS, "osD^vP", strict=True))
    for row, name in enumerate(names):
        changes = []
        for task in tasks:
            losses, reference = finals(records, task, name), finals(records, task, REFERENCE)
            if losses and math.isfinite(statistics.fmean(losses)):
                changes.append(100 * (statistics.fmean(losses) / statistics.fmean(reference) - 1))
                shown = np.clip(changes[-1], -60, 60)
                axes.plot(shown, row, markers[task], color=COLOURS[name], ms=5, alpha=0.75, mec="none")
        if changes:
            median = np.clip(statistics.median(changes), -60, 60)
            axes.plot([median] * 2, [row - 0.33, row + 0.33], color=COLOURS[name], lw=2.5)
    for task in tasks:
        axes.plot([], [], markers[task], color="#555555", ms=5, label=TASKS[task].title)
    axes.axvline(0, color="#333333", lw=1)
    axes.set_yticks(range(len(names)), [OPTIMIZERS[name].title for name in names])
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=5)
    axes.margins(x=0.06)
    axes.set(title="Final validation loss; bar: median", xlabel="difference to AdamW, %")
    axes.xaxis.set_major_locator(FixedLocator([-50, -20, -5, -2, 0, 2, 5, 20, 50]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(
        fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.5 / len(names) - 0.07), ncols=3,
        handletextpad=0.1, columnspacing=1,
    )  # fmt: skip


def _profiles(axes: Axes, records: Sequence[Record], tasks: Sequence[str], names: Sequence[str]) -> None:
    finished = [  # a task without runs would count as one that is never solved
        name for name in names if all(finals(records, task, name) for task in tasks if works(task, name))
    ]
    steps = {
        name: {task: 1 / up for task in tasks if (up := speed_up(records, task, name))} for name in finished
    }
    at = [1 + i / 100 for i in range(101)]
    for name, shares in profile(steps, tasks, at).items():
        loud = name in LOUD
        axes.step(
            at, [100 * share for share in shares], where="post", color=COLOURS[name], ls=DASHES[name],
            lw=2.4 if loud else 1.2, label=OPTIMIZERS[name].title, zorder=3 if loud else 2,
        )  # fmt: skip
    axes.set(
        title="Steps to AdamW's final loss", xlabel="times the fewest of all", ylabel="tasks reached, %",
        xlim=(1, 2), ylim=(-3, 103),
    )  # fmt: skip
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def curves(records: Sequence[Record]) -> Figure | None:
    """Draw the validation loss over steps: the mean of the seeds, each optimizer at its best point."""

    def draw(axes: Axes, task: str, name: str) -> None:
        runs = [
            r for r in select(records, task=task, optimizer=name, stage=Stage.SEEDS) if r.diverged is None
        ]
        if not runs:
            return
        steps = [step for step, _ in runs[0].curve]
        means = [statistics.fmean(run.curve[i][1] for run in runs) for i in range(len(steps))]
        loud, variant = name in LOUD, bool(OPTIMIZERS[name].of)  # its curve is close to the original's
        axes.plot(
            steps, means, color=COLOURS[name], lw=2 if loud else 1, ls="--" if variant else DASHES[name],
            zorder=4 if variant else 3 if loud else 2, label=OPTIMIZERS[name].title,
        )  # fmt: skip

    def finish(axes: Axes, task: str) -> None:
        reference = target(records, task)
        runs = [run for run in select(records, task=task, stage=Stage.SEEDS) if run.optimizer in LOUD]
        early = [run.curve[len(run.curve) // 4][1] for run in runs]
        if reference is not None and early:
            # the first losses may be a hundred times the last ones: leave them out
            high = max(early)
            low = min(reference, *(float(np.min(line.get_ydata())) for line in axes.get_lines()))
            axes.axhline(reference, color=COLOURS[REFERENCE], lw=0.8, ls=":")
            axes.set_ylim(low - 0.05 * (high - low), high)
        axes.set(xlabel="step", ylabel=TASKS[task].unit)

    return _small_multiples(records, draw, finish)


def learning_rates(records: Sequence[Record]) -> Figure | None:
    """Draw the loss over the learning rate at the best weight decay, one seed; the dot is the best."""

    def draw(axes: Axes, task: str, name: str) -> None:
        point = best_point(records, task, name)
        if point is None or OPTIMIZERS[name].of:
            return
        losses = {
            p.octave: x for p, x in tuned(records, task, name).items() if p.weight_decay == point.weight_decay
        }
        octaves = sorted(octave for octave in losses if math.isfinite(losses[octave]))
        about, loud = space(task, name), name in LOUD
        axes.plot(
            [about.lr(octave) for octave in octaves], [losses[octave] for octave in octaves],
            color=COLOURS[name], lw=2 if loud else 1, ls=DASHES[name], zorder=3 if loud else 2,
            label=OPTIMIZERS[name].title,
        )  # fmt: skip
        axes.plot(about.lr(point.octave), losses[point.octave], "o", color=COLOURS[name], ms=4, zorder=4)

    def finish(axes: Axes, task: str) -> None:
        tuned_losses = [x for name in LOUD for x in tuned(records, task, name).values()]
        low = min(r.final for r in select(records, task=task, stage=Stage.TUNE))
        high = statistics.quantiles([x for x in tuned_losses if math.isfinite(x)], n=10)[7]
        axes.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))
        axes.set(xlabel="learning rate", ylabel=TASKS[task].unit, xscale="log")

    return _small_multiples(records, draw, finish)


def batches(records: Sequence[Record]) -> Figure | None:
    """Draw the loss over the batch size, with the learning rate tuned for each."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for name in next(iter(BATCH_TASKS.values())).only:
        found = {size: estimate(of) for size in BATCHES if (of := finals(records, f"batch_{size}", name))}
        if found:
            mean, low, high = zip(*((e.mean, e.low, e.high) for e in found.values()), strict=True)
            axes.plot([*found], mean, "o-", color=COLOURS[name], label=OPTIMIZERS[name].title)
            axes.fill_between([*found], low, high, color=COLOURS[name], alpha=0.2)
    if not axes.lines:
        return None
    axes.set(
        xlabel="images in a batch",
        ylabel="validation loss, nats",
        xscale="log",
        title="Two epochs of Fashion-MNIST",
    )
    axes.set_xticks(BATCHES, [f"{size:,}" for size in BATCHES])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend()
    return figure


def _small_multiples(
    records: Sequence[Record], draw: Callable[[Axes, str, str], None], finish: Callable[[Axes, str], None]
) -> Figure | None:
    tasks = finished_tasks(records)
    if not tasks:
        return None
    columns = 4
    rows = -(-(len(tasks) + 1) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    shown = [name for name in OPTIMIZERS if select(records, optimizer=name)]
    for axes, task in zip(panels, tasks, strict=False):
        for name in shown:
            if works(task, name):
                draw(axes, task, name)
        finish(axes, task)
        axes.set_title(TASKS[task].title)
    for axes in panels[len(tasks) :]:
        axes.axis("off")
    lines = {
        line.get_label(): line for axes in panels for line in axes.get_lines() if _is_visible(line, axes)
    }
    handles = [lines[title] for name in shown if (title := OPTIMIZERS[name].title) in lines]
    panels[len(tasks)].legend(handles=handles, loc="center", ncols=2, fontsize=7)
    return figure


def _is_visible(line: Line2D, axes: Axes) -> bool:
    (low, high), values = axes.get_ylim(), np.asarray(line.get_ydata())
    return bool(((low <= values) & (values <= high)).any())
