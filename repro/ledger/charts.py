"""Line and bar charts as inline SVG in the text colour of the page, for light and dark mode."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, cycle
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

INK = "#010203"  # stands for the page's text colour
COLOURS = ("#0b84c6", "#e07b00", "#1a9e6b", "#c4549a", "#8f7ae0", "#b8860b", "#d1495b", "#5f8a8b")
SIZE = (4.6, 3.0)  # inches; the page scales charts to its columns
MOST_POINTS = 400  # per line; more would not be visible

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.xmargin": 0.01,
}
_salts = count()


@dataclass
class Line:
    """One curve: values by position. Our own curves are drawn thicker."""

    label: str
    values: pd.Series
    own: bool = False


@dataclass
class Chart:
    """Curves that share their axes."""

    title: str
    x: str
    y: str
    lines: list[Line] = field(default_factory=list)
    higher_is_better: bool = True
    missing: list[str] = field(default_factory=list)  # lines whose log is not on this machine

    def svg(self) -> str:
        """Return the chart as SVG; the steep first fifth does not count for the range of the y axis."""
        with mpl.rc_context(STYLE):
            figure, axes = _figure()
            for line, colour in zip(self.lines, cycle(COLOURS), strict=False):
                shown = line.values.iloc[:: max(1, len(line.values) // MOST_POINTS)]
                axes.plot(shown.index, shown, color=colour, lw=2.2 if line.own else 1.2, label=line.label)
            axes.set(xlabel=self.x, ylabel="\n".join(textwrap.wrap(self.y, 40)))
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k
            late = pd.concat([line.values.iloc[len(line.values) // 5 :] for line in self.lines])
            low, high = late.min(), late.max()
            margin = 0.06 * (high - low) or 0.06 * abs(high) or 1
            axes.set_ylim(low - margin, high + margin)
            axes.legend(loc="lower right" if self.higher_is_better else "upper right")
            return svg(figure, self.title)


def bars(title: str, x: str, values: Sequence[tuple[str, float, bool]]) -> str:
    """Return a chart of (label, ratio, ours) as bars from 1 on a log axis, ours in colour."""
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure, axes = _figure(0.25 * len(values) + 0.8)
        axes.set_xscale("log")
        axes.barh(
            [label for label, _, _ in values],
            [ratio - 1 for _, ratio, _ in values],
            left=1,
            color=[COLOURS[0] if ours else "#8a8f98" for _, _, ours in values],
        )
        for row, (_, ratio, _) in enumerate(values):
            axes.text(max(ratio, 1), row, f" {ratio:.2f}", va="center", fontsize=8)
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if t < 2 * max(r for _, r, _ in values)]
        ticks = [t for t in ticks if 2.1 * t > min(r for _, r, _ in values)]
        axes.set(xlim=(ticks[0], 2 * ticks[-1]), xlabel=x)
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.xaxis.minorticks_off()
        axes.axvline(1, color=INK, lw=1)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0, labelsize=8)
        return svg(figure, title)


def _figure(height: float = SIZE[1]) -> tuple[Figure, mpl.axes.Axes]:
    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    return figure, figure.subplots()


def svg(figure: Figure, title: str) -> str:
    """Return the figure as an <svg> element that fills its column and shares no ids with other charts."""
    buffer = io.StringIO()
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_facecolor("none")
    with mpl.rc_context({"svg.hashsalt": f"chart {next(_salts)}"}):  # savefig would draw it twice
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    head, _, body = text.partition(">")
    box = head[head.index("viewBox=") :].split('"')[1]
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    body = body[: body.index("<metadata>")] + body[body.index("</metadata>") + len("</metadata>") :]
    return f'<svg {namespaces} viewBox="{box}" role="img" aria-label="{title}">{body}'
