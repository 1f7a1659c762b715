"""Show a monitor's samples: a page of text, and a plot."""

from collections import deque
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import torch

from ..registry import path_in_use
from ..text import aligned
from .readings import Sample
from .statistics import Summary
from .style import COLOURS, INK, LINES, QUIET, STYLE

COLUMNS = ("first", "last", "mean", "sd", "5 %", "50 %", "95 %", "min", "max")


class Sampled(Protocol):
    """The part of an `adan_optim.Monitor` that a report needs."""

    optimizer: torch.optim.Optimizer
    step: int
    every: int
    last: Sample | None
    samples: deque[Sample]
    summaries: dict[tuple[str, str, str], Summary]
    events: list[tuple[int, str]]
    nonfinite_samples: int

    @property
    def threshold(self) -> float | None:
        """The gradient norm above which steps are clipped, if known."""


def not_finite(sample: Sample) -> str:
    """Describe what is not finite in a sample, and in which parameters; "" if nothing."""
    words = []
    for kind, called in (("grad", "gradients"), ("weight", "weights")):
        if count := sample.get(f"{kind}_nonfinite"):
            parameters = sample.get("parameters", {})
            names = [name for name, here in parameters.items() if here.get(f"{kind}_nonfinite")]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            words.append(
                f"{count} elements of the {called}" + f" ({', '.join(names[:3])}{more})" * bool(names)
            )
    follows = bool(words)  # explains norms and states that are not finite; otherwise they overflowed
    for key, x in sample.items():
        if x is None and not (
            follows and ("." in key or key in ("grad_norm", "weight_norm", "update_ratio"))
        ):
            words.append(key)
    return ", ".join(words)


def text(monitor: Sampled) -> str:
    """Return the report."""
    steps = f"{monitor.step} steps of {path_in_use(monitor.optimizer)}"
    last = monitor.last
    if last is None:
        return f"{steps}; no sample yet"
    whole = {key: summary for (kind, _, key), summary in monitor.summaries.items() if not kind}
    count = whole["weight_norm"].count + whole["weight_norm"].nonfinite
    lines = [f"{steps}; {count} samples, one in {monitor.every}", ""]
    rows: list[tuple[str, ...]] = [("", *COLUMNS)]
    order = sorted(whole, key=lambda key: (key != "loss", key not in last, "." in key))  # else as sampled
    for key in order:
        if key.endswith("_nonfinite") or key == "clipped":
            continue
        s = whole[key]
        numbers = (s.first, s.last, s.mean, s.deviation, *map(s.quantile, (0.05, 0.5, 0.95)))
        rows.append((key, *(f"{x:.4g}" for x in (*numbers, s.min, s.max))))
    lines += aligned(rows, right=COLUMNS)
    if "clipped" in whole:
        share = 100 * whole["clipped"].mean
        lines += ["", f"clipped: {share:.3g} % of the samples, at a gradient norm of {monitor.threshold:.4g}"]
    for group in last["groups"] if len(last["groups"]) > 1 else ():
        ratio, norm = (monitor.summaries.get(("groups", group, key)) for key in ("update_ratio", "grad_norm"))
        if ratio and norm:
            lines.append(
                f"group {group}: median grad_norm {norm.quantile(0.5):.3g}, "
                f"update_ratio {ratio.quantile(0.5):.3g}"
            )
    medians = {
        name: summary.quantile(0.5)
        for (kind, name, key), summary in monitor.summaries.items()
        if kind == "parameters" and key == "update_ratio"
    }
    if medians:
        worst = sorted(medians.items(), key=lambda item: -item[1])[:5]
        lines += ["", "largest median update_ratio"]
        lines += [f"  {value:.3g}  {name}" for name, value in worst]
    lines += ["", *_memory(last["memory"])]
    if not monitor.events:
        lines += ["", "not finite: nothing in any sample"]
    else:
        lines += ["", f"not finite: something in {monitor.nonfinite_samples} samples; the first were"]
        lines += [f"  step {step}: {what}" for step, what in monitor.events[:5]]
    return "\n".join(lines)


def _memory(memory: dict[str, Any]) -> list[str]:
    held = {key: memory[key] for key in ("parameters", "gradients")} | memory["states"]
    rows = [("MiB", "")]
    rows += [(name, f"{size / 2**20:.2f}") for name, size in held.items()]
    rows += [("together", f"{sum(held.values()) / 2**20:.2f}")]
    rows += [(f"peak ({memory['peak_of']})", f"{memory['peak'] / 2**20:.2f}")]
    return aligned(rows, right=[""])


def plot(monitor: Sampled, path: str | Path) -> None:
    """Plot six panels over the steps: loss, gradient norm, update ratios, weights, states, memory.

    Args:
        path: its suffix says the format, such as .png or .svg.

    Raises:
        ValueError: if there is no sample.
    """
    import matplotlib as mpl  # type: ignore[import-not-found,unused-ignore]
    from matplotlib.figure import Figure  # type: ignore[import-not-found,unused-ignore]

    samples = list(monitor.samples)
    if not samples:
        raise ValueError("nothing to plot: there is no sample yet")
    last = samples[-1]
    undated = {
        ".png": {"Software": None},
        ".svg": {"Date": None, "Creator": None},
    }  # the same bytes each time
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 8.4), layout="constrained")
        axes = figure.subplots(3, 2).flatten()
        _draw(axes[0], "loss\nlower is better", _curve(samples, "loss"))
        _draw(axes[1], "gradient norm (L2)", _curve(samples, "grad_norm"), log=True)
        if monitor.threshold:
            axes[1].axhline(monitor.threshold, color=INK, linestyle=":", linewidth=1)
        _draw(axes[2], "update / weight, by group", _by_group(samples, "update_ratio"), log=True)
        _draw(axes[3], "weight norm (L2), by group", _by_group(samples, "weight_norm"))
        norms = [key for key in last if key.endswith(".norm")]
        states = {
            key.removesuffix(".norm"): curve for key in norms for curve in _curve(samples, key).values()
        }
        _draw(axes[4], "state norm (L2)", states, log=True)
        _bars(
            axes[5],
            {key: last["memory"][key] for key in ("parameters", "gradients")} | last["memory"]["states"],
        )
        found = (
            f"something in {monitor.nonfinite_samples} samples" if monitor.events else "nothing in any sample"
        )
        figure.suptitle(f"Not finite: {found}", x=0.01, ha="left")
        figure.savefig(path, dpi=150, facecolor="white", metadata=undated.get(Path(path).suffix.lower()))


Curves = dict[str, list[tuple[int, float]]]  # points by label


def _curve(samples: Sequence[Sample], key: str, *inside: str) -> Curves:
    """Return the curve of the finite values of a key, if there are any."""
    points = []
    for sample in samples:
        numbers = sample
        for name in inside:
            numbers = numbers.get(name, {})
        if numbers.get(key) is not None:
            points.append((sample["step"], numbers[key]))
    return {inside[-1] if inside else key: points} if points else {}


def _by_group(samples: Sequence[Sample], key: str) -> Curves:
    groups = dict.fromkeys(name for sample in samples for name in sample["groups"])
    return {k: v for name in groups for k, v in _curve(samples, key, "groups", name).items()}


def _draw(axes: Any, what: str, curves: Curves, log: bool = False) -> None:
    """Draw curves; of more than can be told apart, those that end highest are in colour."""
    axes.set(xlabel="step", ylabel=what)
    order = sorted(curves, key=lambda label: -curves[label][-1][1])
    front = [label for label in curves if label in order[: len(COLOURS)]]
    for label in order[len(COLOURS) :]:
        axes.plot(*zip(*curves[label], strict=True), color=QUIET, linewidth=1, zorder=1.5)
    for label, colour, dashes in zip(front, COLOURS, cycle(LINES), strict=False):
        style = {"color": colour, "linestyle": dashes, "marker": "." if len(curves[label]) < 30 else None}
        axes.plot(*zip(*curves[label], strict=True), **style, label=label)
    if log and any(y > 0 for points in curves.values() for _, y in points):
        axes.set_yscale("log")
    if len(curves) == 1:
        [points] = curves.values()
        axes.set_title(f"from {points[0][1]:.4g} to {points[-1][1]:.4g}")
    elif curves:
        behind = len(curves) - len(front)
        grey = f"\nin grey: the {behind} that end lowest" if behind else ""
        axes.set_title(f"highest at the end: {order[0][:24]}{grey}")
        axes.legend()


def _bars(axes: Any, held: dict[str, int]) -> None:
    """Draw the memory that is held, in bytes by name."""
    axes.barh(list(held), [size / 2**20 for size in held.values()], color=COLOURS[1])
    axes.invert_yaxis()
    axes.set(title=f"together {sum(held.values()) / 2**20:.4g} MiB", xlabel="memory at the last sample, MiB")
