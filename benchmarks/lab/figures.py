"""Figures of the lab."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.comparison.design import REFERENCE
from benchmarks.comparison.figures import BETTER, in_seeds, in_words, lower_or_higher
from benchmarks.comparison.measures import Estimate, estimate, in_times
from benchmarks.comparison.records import Record
from benchmarks.lab.design import LENGTHS, OPTIMIZERS, RUNGS, TASKS, TUNED
from benchmarks.lab.measures import change, finals, ladder, multiplier
from repro.plots import INK, STYLE, finish, look, panels, quantity, rc_context

TOP = 2.3  # of the multipliers that are drawn; an interval without upper end goes up to it


@rc_context(STYLE)
def draw_all(records: Sequence[Record]) -> dict[str, Figure]:
    """Return every figure for which there are enough records, by name."""
    drawn = {"multiplier": multipliers(records), "ladder": ladders(records)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def multipliers(records: Sequence[Record]) -> Figure | None:
    """Draw the step multiplier over the length of the runs, a panel a task, with intervals over the seeds."""
    tasks = [task for task in TASKS if any(multiplier(records, task, "adan", steps) for steps in LENGTHS)]
    if not tasks:
        return None
    figure, axes = panels(len(tasks), height=2.9, sharey=True)
    seeds: set[int] = set()
    for panel, task in zip(axes, tasks, strict=True):
        found = {
            name: [(steps, each) for steps in LENGTHS if (each := multiplier(records, task, name, steps))]
            for name in OPTIMIZERS
            if name != REFERENCE
        }
        shown = [name for name in found if found[name]]
        for place, name in enumerate(shown):
            # a little beside each other, so that intervals do not hide each other
            shift = 1.04 ** (place - (len(shown) - 1) / 2)
            x, middle, low, top = np.array(
                [
                    (steps * shift, *_drawn(each, [*ladder(records, task, steps)]))
                    for steps, each in found[name]
                ]
            ).T
            panel.errorbar(
                x, middle, [middle - low, top - middle], **look(name).points, capsize=2, elinewidth=1,
                label=OPTIMIZERS[name].title,
            )  # fmt: skip
            beyond = [not 0 < each.mean < math.inf for _, each in found[name]]
            hollow = look(name).points | {"linestyle": "none", "markerfacecolor": "white", "zorder": 3}
            panel.plot(x[beyond], middle[beyond], **hollow)
            seeds |= {each.number for _, each in found[name]}
        for level, style in ((1, "-"), (2, "--")):
            panel.axhline(level, color=INK, lw=0.8, ls=style)
        _lengths(panel, LENGTHS)
        panel.set(title=TASKS[task].title)
        panel.set(yscale="log", ylim=(0.45, TOP), xlim=(LENGTHS[0] / 1.4, LENGTHS[-1] * 1.4))
        panel.set_yticks([0.5, 0.7, 1, 1.4, 2], ["0.5", "0.7", "1", "1.4", "2"])
        panel.yaxis.set_minor_locator(NullLocator())
    for panel in axes[::2]:
        panel.set_ylabel("step multiplier\nhigher is better")
    times = in_words([_longest(records, task, interval=len(tasks) == 1) for task in tasks])
    finish(
        figure, f"AdamW needs {times} times Adan's steps to the same loss, in the longest runs",
        f"Step multiplier: AdamW's steps to the same loss, over its own. Mean of {in_seeds(seeds)}; bars: "
        "intervals of 95 %, without an upper end where they reach the edge. Hollow: at AdamW's shortest or "
        "longest runs, or beyond. Dashed: half the steps.",
    )  # fmt: skip
    return figure


def _drawn(found: Estimate, rungs: Sequence[float]) -> tuple[float, float, float]:
    """Return where a multiplier and its interval are drawn: what is beyond the ladder, at its end."""
    middle, low = np.clip((found.mean, found.low), rungs[0], rungs[-1])
    return middle, low, max(found.high, middle) if math.isfinite(found.high) else TOP


def _longest(records: Sequence[Record], task: str, interval: bool) -> str:
    """Return Adan's multiplier in its longest runs on a task, in words."""
    found = {steps: multiplier(records, task, "adan", steps) for steps in LENGTHS}
    steps, last = [(steps, each) for steps, each in found.items() if each is not None][-1]
    bare = Estimate(last.mean, last.mean, last.mean, last.number)
    return in_times(last if interval else bare, list(ladder(records, task, steps)))


def ladders(records: Sequence[Record]) -> Figure | None:
    """Draw the final loss over the length of the runs, a panel a task."""
    tasks = [task for task in TASKS if finals(records, task, REFERENCE, TUNED)]
    if not tasks:
        return None
    figure, axes = panels(len(tasks), height=2.9)
    seeds, differences = set(), []
    for panel, task in zip(axes, tasks, strict=True):
        for name in OPTIMIZERS:
            lengths = RUNGS if name == REFERENCE else LENGTHS
            found = {steps: finals(records, task, name, steps) for steps in lengths}
            points = [(steps, estimate(list(of.values()))) for steps, of in found.items() if of]
            if not points:
                continue
            x, each = zip(*points, strict=True)
            panel.plot(x, [e.mean for e in each], **look(name).points, label=OPTIMIZERS[name].title)
            panel.fill_between(
                x, [e.low for e in each], [e.high for e in each], color=look(name).colour, alpha=0.2,
                linewidth=0,
            )  # fmt: skip
            seeds |= {e.number for e in each}
        changes = [
            change(finals(records, task, "adan", steps), finals(records, task, REFERENCE, steps))
            for steps in LENGTHS
        ]
        differences += [each for each in changes if each is not None][-1:]
        _lengths(panel, RUNGS)
        panel.set(title=TASKS[task].title, ylabel=quantity("validation loss", TASKS[task].unit, BETTER))
    finish(
        figure,
        f"{lower_or_higher(differences)}, in the longest runs" if differences else "Which ends lower?",
        f"Each point is a run's end, with a schedule of its length. Mean of {in_seeds(seeds)}; band: "
        "bootstrap interval of 95 %.",
    )  # fmt: skip
    return figure


def _lengths(axes: Axes, lengths: Sequence[int]) -> None:
    shown = lengths[:: 1 + len(lengths) // 4]
    axes.set(xscale="log", xlabel="steps of the run")
    axes.set_xticks(shown, [f"{steps:,}" for steps in shown])
    axes.xaxis.set_minor_locator(NullLocator())
