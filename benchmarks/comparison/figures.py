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

from benchmarks.comparison.design import BATCH_TASKS, BATCHES, LADDER, OPTIMIZERS, REFERENCE, TASKS
from benchmarks.comparison.measures import (
    best_point,
    estimate,
    finals,
    multiplier,
    target,
)
from benchmarks.comparison.records import Record, Stage, select
from benchmarks.comparison.todo import space, tuned, works
from repro.plots import STYLE

LOUD = {"adan": "#d1495b", REFERENCE: "#0b84c6"}  # drawn in front of the others
QUIET = (
    "#1a9e6b", "#e07b00", "#8f7ae0", "#c4549a", "#b8860b",
    "#5f8a8b", "#7a5c3e", "#6b8e23", "#4b5563", "#a0a0a0",
)  # fmt: skip
LINES = ("-", "-.")  # twenty optimizers have ten colours twice, the second time with dashes
CODES = dict(zip((name for name in OPTIMIZERS if name not in LOUD), product(LINES, QUIET), strict=False))
COLOURS = LOUD | {name: colour for name, (_, colour) in CODES.items()}
MARKERS = dict(zip(TASKS, "osD^vP", strict=True))
BEYOND = LADDER[0] * 0.85, LADDER[-1] / 0.85  # where multipliers outside the ladder are drawn
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
    """Draw losses compared with AdamW's on every task, and how many steps AdamW needs for them."""
    tasks = finished_tasks(records)
    if not tasks:
        return None
    names = [name for name in OPTIMIZERS if any(finals(records, task, name) for task in tasks)]
    figure = Figure(figsize=(10, 0.3 * len(names) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)

    def change(task: str, name: str) -> float | None:
        losses, reference = finals(records, task, name), finals(records, task, REFERENCE)
        return 100 * (statistics.fmean(losses) / statistics.fmean(reference) - 1) if losses else None

    def steps(task: str, name: str) -> float | None:
        found = multiplier(records, task, name)
        return None if found is None else found.mean

    _dots(left, tasks, names, change, (-60, 60))
    left.axvline(0, color="#333333", lw=1)
    left.set_yticks(range(len(names)), [OPTIMIZERS[name].title for name in names])
    left.invert_yaxis()
    left.set_xscale("symlog", linthresh=5)
    left.margins(x=0.06)
    left.set(title="Final loss: left is better", xlabel="difference to AdamW, %")
    left.xaxis.set_major_locator(FixedLocator([-50, -20, -5, -2, 0, 2, 5, 20, 50]))
    left.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")

    _dots(right, tasks, names, steps, BEYOND)
    right.axvline(1, color="#333333", lw=1)
    right.set_xscale("log", base=2)
    right.set(
        title="Step multiplier: right is better", xlabel="AdamW's steps to the same loss, over the own",
        xlim=(BEYOND[0] * 0.9, BEYOND[1] / 0.9),
    )  # fmt: skip
    right.set_xticks(LADDER, [f"{length:g}" for length in LADDER])
    right.tick_params(axis="y", length=0)

    for axes in (left, right):
        axes.xaxis.set_minor_locator(NullLocator())
    for task in tasks:
        left.plot([], [], MARKERS[task], color="#555555", ms=5, label=TASKS[task].title)
    left.plot([], [], "|", color="#555555", ms=9, mew=2.5, label="median")
    right.plot([], [], "o", color="#555555", ms=5, mfc="none", label="beyond the axis")
    figure.legend(fontsize=7, loc="outside lower center", ncols=8, handletextpad=0.1, columnspacing=1)
    return figure


def _dots(
    axes: Axes,
    tasks: Sequence[str],
    names: Sequence[str],
    of: Callable[[str, str], float | None],
    limits: tuple[float, float],
) -> None:
    """Draw a value of each task and optimizer, and the median; what is beyond the limits is hollow."""
    for row, name in enumerate(names):
        values = [(task, value) for task in tasks if (value := of(task, name)) is not None]
        for task, value in values:
            shown = np.clip(value, *limits)
            axes.plot(
                shown, row, MARKERS[task], color=COLOURS[name], ms=5, alpha=0.75,
                mfc=COLOURS[name] if shown == value else "none",
            )  # fmt: skip
        if values:
            median = np.clip(statistics.median(value for _, value in values), *limits)
            axes.plot([median] * 2, [row - 0.33, row + 0.33], color=COLOURS[name], lw=2.5)


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
