"""Figures of the lab."""

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.comparison.design import REFERENCE
from benchmarks.comparison.measures import estimate
from benchmarks.comparison.records import Record
from benchmarks.lab.design import LENGTHS, OPTIMIZERS, RUNGS, TASKS, TUNED
from benchmarks.lab.measures import finals, multiplier
from repro.plots import STYLE

# Okabe and Ito's colours, each with a marker of its own, of the optimizers that run at all lengths
LOOKS = {
    "adamw": ("#0072B2", "o"),
    "adan": ("#D55E00", "D"),
    "adan_int8": ("#E69F00", "s"),
    "adan_bf16": ("#CC79A7", "v"),
    "nadamw": ("#009E73", "^"),
    "muon": ("#000000", "P"),
    "shampoo": ("#56B4E9", "x"),
}


TOP = 2.3  # of the multipliers that are drawn; an interval without upper end goes up to it


def draw_all(records: Sequence[Record]) -> dict[str, Figure]:
    """Return every figure for which there are enough records, by name."""
    with mpl.rc_context(STYLE):
        drawn = {"multiplier": multipliers(records), "ladder": ladders(records)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def multipliers(records: Sequence[Record]) -> Figure | None:
    """Draw the step multiplier over the length of the runs, a panel a task, with intervals over the seeds."""
    tasks = [task for task in TASKS if any(multiplier(records, task, "adan", steps) for steps in LENGTHS)]
    if not tasks:
        return None
    figure, panels = _panels(len(tasks))
    for axes, task in zip(panels, tasks, strict=True):
        for place, name in enumerate(LOOKS):
            found = {steps: multiplier(records, task, name, steps) for steps in LENGTHS}
            # a little beside each other, so that intervals do not hide each other
            shift = 1.04 ** (place - len(LOOKS) // 2)
            points = [
                (steps * shift, each.mean, each.low, each.high)
                for steps, each in found.items()
                if each is not None and 0 < each.mean < math.inf and name != REFERENCE
            ]
            if points:
                x, middle, low, high = np.array(points).T
                top = np.where(np.isfinite(high), high, TOP)
                colour, marker = LOOKS[name]
                axes.errorbar(
                    x, middle, [middle - low, top - middle], color=colour, marker=marker, ms=5, capsize=2,
                    lw=1.2, label=OPTIMIZERS[name].title,
                )  # fmt: skip
        for level, style in ((1, "-"), (2, "--")):
            axes.axhline(level, color="#555555", lw=0.8, ls=style)
        _lengths(axes, LENGTHS)
        axes.set(title=TASKS[task].title, yscale="log")
        axes.set_yticks([0.5, 0.7, 1, 1.4, 2], ["0.5", "0.7", "1", "1.4", "2"])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set(ylim=(0.45, TOP), xlim=(LENGTHS[0] / 1.4, LENGTHS[-1] * 1.4))
    panels[0].set_ylabel("AdamW's steps to the same loss,\nover the own (higher is better)")
    figure.suptitle("Step multiplier by length of run", fontsize=9)
    _legend(figure, panels)
    return figure


def ladders(records: Sequence[Record]) -> Figure | None:
    """Draw the final loss over the length of the runs, a panel a task."""
    tasks = [task for task in TASKS if finals(records, task, REFERENCE, TUNED)]
    if not tasks:
        return None
    figure, panels = _panels(len(tasks), sharey=False)
    for axes, task in zip(panels, tasks, strict=True):
        for name in LOOKS:
            lengths = RUNGS if name == REFERENCE else LENGTHS
            found = {steps: finals(records, task, name, steps) for steps in lengths}
            points = [(steps, estimate(list(of.values()))) for steps, of in found.items() if of]
            if not points:
                continue
            colour, marker = LOOKS[name]
            x, each = zip(*points, strict=True)
            axes.plot(
                x, [e.mean for e in each], color=colour, marker=marker, ms=4, lw=1.2,
                label=OPTIMIZERS[name].title,
            )  # fmt: skip
            axes.fill_between(x, [e.low for e in each], [e.high for e in each], color=colour, alpha=0.2)
        _lengths(axes, RUNGS)
        axes.set(title=TASKS[task].title, ylabel=f"validation loss, {TASKS[task].unit} (lower is better)")
    figure.suptitle("Final loss by length of run", fontsize=9)
    _legend(figure, panels)
    return figure


def _panels(number: int, sharey: bool = True) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(1.2 + 3.1 * number, 3.6), layout="constrained")
    return figure, figure.subplots(1, number, sharey=sharey, squeeze=False)[0]


def _lengths(axes: Axes, lengths: Sequence[int]) -> None:
    axes.set(xscale="log", xlabel="steps of the run")
    axes.set_xticks(lengths, [f"{steps:,}" for steps in lengths], rotation=45 if len(lengths) > 4 else 0)
    axes.xaxis.set_minor_locator(NullLocator())


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend([*handles.values()], [*handles], fontsize=8, loc="outside lower center", ncols=len(handles))
