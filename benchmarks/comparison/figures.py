"""Figures of the comparison."""

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from benchmarks.comparison.claims import NO, OPEN, YES, judge
from benchmarks.comparison.design import (
    BATCH_TASKS,
    BATCHES,
    COMPARISON,
    LADDER,
    OPTIMIZERS,
    REFERENCE,
    TASKS,
)
from benchmarks.comparison.measures import (
    Estimate,
    best_point,
    difference,
    estimate,
    finals,
    multiplier,
    target,
    winner,
)
from benchmarks.comparison.records import Record, Stage, select
from benchmarks.comparison.todo import tuned
from repro.plots import INK, MOST, QUIET, STYLE, Look, finish, look, panels, quantity, rc_context

LOUD = (REFERENCE, "adan")
MARKERS = dict(zip(TASKS, "osD^vP", strict=True))
BEYOND = LADDER[0] * 0.85, LADDER[-1] / 0.85  # where multipliers outside the ladder are drawn
BETTER = "lower is better"


@rc_context(STYLE)
def draw_all(records: Sequence[Record]) -> dict[str, Figure]:
    """Return every figure for which there are enough records, by name."""
    figures: dict[str, Callable[[Sequence[Record]], Figure | None]] = {
        "headline": headline,
        "curves": curves,
        "learning_rates": learning_rates,
        "batches": batches,
    }
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
    medians = median_changes(records, tasks)
    names = sorted(medians, key=medians.__getitem__)
    figure, [left, right] = panels(2, height=0.24 * len(names) + 1.1, sharey=True)

    def steps(task: str, name: str) -> float | None:
        found = multiplier(records, task, name)
        return None if found is None else found.mean

    _dots(left, tasks, names, lambda task, name: change(records, task, name), (-60, 60))
    left.axvline(0, color=INK, lw=1)
    left.set_yticks(range(len(names)), [OPTIMIZERS[name].title for name in names])
    for label, name in zip(left.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name in LOUD else "normal")
    left.set_ylim(len(names) - 0.4, -0.6)
    left.set_xscale("symlog", linthresh=5)
    left.margins(x=0.06)
    left.set(title="Final loss", xlabel="difference from AdamW's, %\nleft is better")
    left.xaxis.set_major_locator(FixedLocator([-50, -5, 0, 5, 50]))
    left.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")

    _dots(right, tasks, names, steps, BEYOND)
    right.axvline(1, color=INK, lw=1)
    right.set_xscale("log", base=2)
    right.set(
        title="Step multiplier", xlabel="AdamW's steps to the same loss,\nover its own; right is better",
        xlim=(BEYOND[0] * 0.9, BEYOND[1] / 0.9),
    )  # fmt: skip
    right.set_xticks(LADDER, [f"{length:g}" for length in LADDER])

    for axes in (left, right):
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(axis="y", length=0)
    for task in tasks:
        left.plot([], [], MARKERS[task], color=INK, label=TASKS[task].title)
    left.plot([], [], "|", color=INK, ms=9, mew=2.5, label="median of the tasks")
    right.plot([], [], "o", color=INK, mfc="none", label="beyond the axis")
    told = [*[name for name in names if name not in LOUD][:1], "adan"]
    found = " and ".join(f"{OPTIMIZERS[name].title} {_against(medians[name])}" for name in told)
    seeds = {len(of) for task in tasks for name in names if (of := finals(records, task, name))}
    finish(
        figure, f"Final loss, median of {_tasks(len(tasks))}: {found} AdamW",
        f"Sorted by the median loss. Each point is the mean of {in_seeds(seeds)} on a task, the learning "
        "rate and weight decay tuned there.",
    )  # fmt: skip
    return figure


def change(records: Sequence[Record], task: str, name: str) -> float | None:
    """Return how far an optimizer's mean final loss is from AdamW's, in percent; None without runs."""
    losses, reference = finals(records, task, name), finals(records, task, REFERENCE)
    return 100 * (statistics.fmean(losses) / statistics.fmean(reference) - 1) if losses else None


def median_changes(records: Sequence[Record], tasks: Sequence[str]) -> dict[str, float]:
    """Return the median of `change` over the tasks, of each optimizer that has runs."""
    changes = {name: [change(records, task, name) for task in tasks] for name in OPTIMIZERS}
    known = {name: [value for value in of if value is not None] for name, of in changes.items()}
    return {name: statistics.median(of) for name, of in known.items() if of}


def _against(percent: float) -> str:
    return f"{abs(percent):.2g} % {'below' if percent < 0 else 'above'}"


def _tasks(number: int) -> str:
    return "1 task" if number == 1 else f"{number} tasks"


def in_seeds(numbers: set[int]) -> str:
    """Return the numbers of seeds behind the points of a figure, in words."""
    return "1 seed" if numbers == {1} else f"{' or '.join(map(str, sorted(numbers)))} seeds"


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
        colour = look(name).colour
        for task, value in values:
            shown = np.clip(value, *limits)
            axes.plot(
                shown, row, MARKERS[task], color=colour, alpha=0.75,
                mfc=colour if shown == value else "none",
            )  # fmt: skip
        if values:
            median = np.clip(statistics.median(value for _, value in values), *limits)
            axes.plot([median] * 2, [row - 0.36, row + 0.36], color=colour, lw=2.5)


def curves(records: Sequence[Record]) -> Figure | None:
    """Draw the validation loss over steps: the mean of the seeds, each optimizer at its best point."""

    def draw(axes: Axes, task: str, name: str, look: Look) -> None:
        runs = [
            r for r in select(records, task=task, optimizer=name, stage=Stage.SEEDS) if r.diverged is None
        ]
        if runs:
            steps = [step for step, _ in runs[0].curve]
            means = [statistics.fmean(run.curve[i][1] for run in runs) for i in range(len(steps))]
            axes.plot(steps, means, **look.line, label=look.label(OPTIMIZERS[name].title))

    def finish_panel(axes: Axes, task: str) -> None:
        reference = target(records, task)
        runs = [run for run in select(records, task=task, stage=Stage.SEEDS) if run.optimizer in LOUD]
        early = [run.curve[len(run.curve) // 4][1] for run in runs]
        if reference is not None and early:
            # the first losses may be a hundred times the last ones: leave them out
            high = max(early)
            low = min(reference, *(float(np.min(line.get_ydata())) for line in axes.get_lines()))
            axes.axhline(reference, color=INK, lw=0.8, ls=":")
            axes.set_ylim(low - 0.05 * (high - low), high)
        best = winner(records, task)
        lowest = f"\nlowest: {OPTIMIZERS[best].title}" if best else ""
        axes.set(title=TASKS[task].title + lowest, xlabel="step")

    tasks = finished_tasks(records)
    both = [(finals(records, task, "adan"), finals(records, task, REFERENCE)) for task in tasks]
    seeds = {len(of) for task in tasks for name in OPTIMIZERS if (of := finals(records, task, name))}
    return _small_multiples(
        records, draw, finish_panel, lower_or_higher([difference(*losses) for losses in both]),
        f"Mean of {in_seeds(seeds)}, each optimizer at its best learning rate and weight decay. Dotted: "
        "AdamW's final loss, the median of its seeds.",
    )  # fmt: skip


def lower_or_higher(differences: Sequence[Estimate]) -> str:
    """Say on how many tasks Adan ends lower than AdamW, by the intervals of the differences of losses."""
    verdicts = [judge(each) for each in differences]
    if len(verdicts) == 1:
        ends = {
            YES: "ends lower than AdamW",
            NO: "ends higher than AdamW",
            OPEN: "and AdamW are not told apart",
        }
        return f"Adan {ends[verdicts[0]]}"
    lower, higher, undecided = (verdicts.count(verdict) for verdict in (YES, NO, OPEN))
    finding = f"Adan ends lower than AdamW on {lower} of {_tasks(len(verdicts))}, higher on {higher}"
    return finding + (f", undecided on {undecided}" if undecided else "")


def learning_rates(records: Sequence[Record]) -> Figure | None:
    """Draw the loss over the learning rate at the best weight decay, one seed; the dot is the best."""

    def draw(axes: Axes, task: str, name: str, look: Look) -> None:
        point = best_point(records, task, name)
        if point is None or OPTIMIZERS[name].of:
            return
        losses = {
            p.octave: x for p, x in tuned(records, task, name).items() if p.weight_decay == point.weight_decay
        }
        octaves = sorted(octave for octave in losses if math.isfinite(losses[octave]))
        about = COMPARISON.space(task, name)
        axes.plot(
            [about.lr(octave) for octave in octaves], [losses[octave] for octave in octaves],
            **look.line, label=look.label(OPTIMIZERS[name].title),
        )  # fmt: skip
        if look.marker:
            axes.plot(about.lr(point.octave), losses[point.octave], look.marker, color=look.colour, zorder=4)

    def ratio(task: str) -> float | None:
        points = {name: best_point(records, task, name) for name in LOUD}
        theirs, ours = (p and COMPARISON.space(task, name).lr(p.octave) for name, p in points.items())
        return ours / theirs if ours and theirs else None

    def finish_panel(axes: Axes, task: str) -> None:
        tuned_losses = [x for name in LOUD for x in tuned(records, task, name).values()]
        low = min(r.final for r in select(records, task=task, stage=Stage.TUNE))
        high = statistics.quantiles([x for x in tuned_losses if math.isfinite(x)], n=10)[7]
        axes.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))
        found = ratio(task)
        times = f"\nAdan's best: {found:g} times AdamW's" if found else ""
        axes.set(title=TASKS[task].title + times, xlabel="learning rate", xscale="log")
        axes.xaxis.set_minor_locator(NullLocator())

    found = [each for task in finished_tasks(records) if (each := ratio(task))]
    ends = " to ".join(f"{end:g}" for end in sorted({min(found), max(found)})) if found else ""
    return _small_multiples(
        records, draw, finish_panel,
        f"Adan's best learning rate is {ends} times AdamW's" if found else "Which learning rate is best?",
        "One seed, that of the searches, at the best weight decay; the marker is at the best learning rate. "
        "Prodigy's learning rate is a factor on its own estimate.",
    )  # fmt: skip


def batches(records: Sequence[Record]) -> Figure | None:
    """Draw the loss over the batch size, with the learning rate tuned for each."""
    figure, [axes] = panels(1, height=3.0)
    seeds = set()
    for name in next(iter(BATCH_TASKS.values())).only:
        found = {size: estimate(of) for size in BATCHES if (of := finals(records, f"batch_{size}", name))}
        if found:
            mean, low, high = zip(*((e.mean, e.low, e.high) for e in found.values()), strict=True)
            axes.plot([*found], mean, **look(name).points, label=OPTIMIZERS[name].title)
            axes.fill_between([*found], low, high, color=look(name).colour, alpha=0.2, linewidth=0)
            seeds |= {e.number for e in found.values()}
    if not axes.lines:
        return None
    axes.set(xlabel="images in a batch", ylabel=quantity("validation loss", "nats", BETTER), xscale="log")
    axes.set_xticks(BATCHES, [f"{size:,}" for size in BATCHES])
    axes.xaxis.set_minor_locator(NullLocator())
    lowest: dict[str, list[str]] = {}
    for size in BATCHES:
        if best := winner(records, f"batch_{size}"):
            lowest.setdefault(OPTIMIZERS[best].title, []).append(f"{size:,}")
    found_ = "; ".join(f"{title} in batches of {in_words(sizes)}" for title, sizes in lowest.items())
    finish(
        figure, f"Lowest mean loss after two epochs: {found_}",
        f"A small ViT on Fashion-MNIST, the learning rate tuned for each batch size. Mean of "
        f"{in_seeds(seeds)}; band: bootstrap interval of 95 %.",
    )  # fmt: skip
    return figure


def in_words(words: Sequence[str]) -> str:
    """Return words as an enumeration."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _small_multiples(
    records: Sequence[Record],
    draw: Callable[[Axes, str, str, Look], None],
    finish_panel: Callable[[Axes, str], None],
    finding: str,
    note: str,
) -> Figure | None:
    """Draw a panel for each task: AdamW, Adan and the best of the others in colour, the rest in grey."""
    tasks = finished_tasks(records)
    if not tasks:
        return None
    medians = median_changes(records, tasks)
    others = [name for name in medians if name not in LOUD and not OPTIMIZERS[name].of]
    front = [*LOUD, *sorted(others, key=medians.__getitem__)][:MOST]
    figure, axes = panels(len(tasks))
    grey = set()
    for panel, task in zip(axes, tasks, strict=True):
        for name in [name for name in OPTIMIZERS if COMPARISON.works(task, name)]:
            before = len(panel.lines)
            draw(panel, task, name, look(name) if name in front else Look(QUIET, "", "-"))
            if len(panel.lines) > before and name not in front:
                grey.add(name)
        finish_panel(panel, task)
        panel.set_ylabel(quantity("validation loss", TASKS[task].unit, BETTER))
        for line in panel.get_lines():
            if not _is_visible(line, panel):
                line.set_label(None)
    if grey:
        note += (
            f" In grey: {len(grey)} others; besides AdamW and Adan, the lowest median losses are in colour."
        )
    finish(figure, finding, note)
    return figure


def _is_visible(line: Line2D, axes: Axes) -> bool:
    (low, high), values = axes.get_ylim(), np.asarray(line.get_ydata())
    return bool(((low <= values) & (values <= high)).any())
