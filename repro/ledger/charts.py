"""The charts of the report: what they show and where it goes; templates/charts.html draws them as SVG.

Curves are drawn in the units of their data and scaled by the SVG, so that the page's script reads values from
them.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter, MaxNLocator

from repro.plots import INK, QUIET, Look, looks

FINEST = 2000  # parts of the y axis; a point is at least as exact as one of them
WIDTH, HEIGHT = 400, 242  # of a chart of curves, in units of the SVG
ROWS = 280  # width of a chart of rows, without their names
LEFT, RIGHT, TOP, BOTTOM = 48, 384, 8, 208  # of the part that has the curves
ROW = 17  # height of a row
LETTER = 7.4  # width of a letter in a name
DASHES = {"-": "", "--": "7 4", ":": "2 3", "-.": "8 3 2 3"}
PAGE = {INK: "currentColor", QUIET: "var(--quiet)"}  # colours that depend on that of the page


@dataclass
class Line:
    """One curve: values by position.

    Attributes:
        optimizer: whose look it has; None for anything else.
    """

    label: str
    values: pd.Series
    optimizer: str | None = None

    @property
    def last(self) -> float:
        """The last value."""
        return float(self.values.iloc[-1])


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`, drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> str:
        """Return the place of a value in the SVG."""
        share = (value - self.low) / (self.high - self.low)
        return f"{self.start + share * (self.end - self.start):.1f}".removesuffix(".0")

    def ticks(self, number: int, words: Callable[[float], str] = "{:.6g}".format) -> list[tuple[str, str]]:
        """Return the places and words of round values."""
        values = MaxNLocator(number).tick_values(self.low, self.high)
        return [(self.at(value), words(value)) for value in values if self.low <= value <= self.high]


@dataclass
class Chart:
    """Curves that share their axes.

    Attributes:
        x: what the positions count: epoch or step.
        y: what the values are, with their unit.
        missing: names of curves whose log is not on this machine.
        limits: of the y axis; None: those of the curves without their steep first fifth.
        most: points of a curve.
    """

    title: str
    x: str
    y: str
    lines: list[Line] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    limits: tuple[float, float] | None = None
    most: int = 80

    @property
    def looks(self) -> Mapping[str, Look]:
        """The look of each curve; all beyond a few are grey."""
        return looks({line.label: line.optimizer for line in self.lines})

    @property
    def across(self) -> Scale:
        """The x axis."""
        ends = [end(line.values.index) for line in self.lines for end in (min, max)]
        return Scale(min(ends), max(ends) if max(ends) > min(ends) else min(ends) + 1, LEFT, RIGHT)

    @property
    def up(self) -> Scale:
        """The y axis."""
        if self.limits is None:
            late = pd.concat([line.values.iloc[len(line.values) // 5 :] for line in self.lines])
            low, high = late.min(), late.max()
        else:
            low, high = self.limits
        margin = 0.06 * (high - low) or 0.06 * abs(high) or 1
        return Scale(low - margin, high + margin, BOTTOM, TOP)

    @property
    def x_ticks(self) -> list[tuple[str, str]]:
        """The marks of the x axis: 0.5, 20, 200k."""
        thousands = EngFormatter(sep="")
        return self.across.ticks(4, lambda x: thousands(x) if x >= 1000 else f"{x:g}")

    @property
    def view(self) -> str:
        """The viewBox of the curves."""
        x, y = self.across, self.up
        return f"{x.low:.7g} {-y.high:.7g} {x.high - x.low:.7g} {y.high - y.low:.7g}"

    def points(self, line: Line) -> str:
        """Return the points of a curve as a polyline has them."""
        chosen = np.unique(np.linspace(0, len(line.values) - 1, self.most).round().astype(int))
        finest = (self.up.high - self.up.low) / FINEST
        decimals = max(0, -math.floor(math.log10(finest)))
        shown = line.values.iloc[chosen]
        return " ".join(f"{round(float(at), 3):.7g},{round(y, decimals):.7g}" for at, y in shown.items())

    @property
    def summary(self) -> str:
        """The chart in words, for those who cannot see it."""
        ends = ", ".join(f"{line.label} {line.last:.4g}" for line in self.lines)
        return f"{self.title}: {self.y} by {self.x}. Last values: {ends}."


@dataclass
class Row:
    """A row of `Rows`: its name, and values with a name each.

    Attributes:
        loud: set off from the other rows.
    """

    label: str
    colour: str
    values: Sequence[tuple[str, float]]
    loud: bool = False

    @property
    def middle(self) -> float:
        """The median of the values."""
        return statistics.median(value for _, value in self.values)


@dataclass
class Rows:
    """Ratios on a logarithmic axis: a row for each name, with a dot for each value and a bar at the median.

    Attributes:
        marks: values on the axis, whose ends they are; what is beyond is drawn hollow, at the end.
    """

    title: str
    x: str
    rows: Sequence[Row]
    marks: Sequence[float]

    @property
    def names(self) -> int:
        """The width of the names."""
        return round(LETTER * max(len(row.label) for row in self.rows))

    @property
    def bottom(self) -> int:
        """The end of the rows."""
        return ROW * len(self.rows) + 6

    @property
    def ticks(self) -> list[tuple[str, str]]:
        """The marks of the axis."""
        return [(self.at(mark), f"{mark:g}") for mark in self.marks]

    def beyond(self, value: float) -> bool:
        """Return whether a value is not on the axis."""
        return not self.marks[0] <= value <= self.marks[-1]

    def at(self, value: float) -> str:
        """Return the place of a value; one beyond the axis is next to its end."""
        start, end = self.names + 20, self.names + ROWS - 16
        if self.beyond(value):
            return str(start - 8 if value < self.marks[0] else end + 8)
        low, high = math.log(self.marks[0]), math.log(self.marks[-1])
        return Scale(low, high, start, end).at(math.log(value))

    @property
    def summary(self) -> str:
        """The chart in words, for those who cannot see it."""
        words = "; ".join(f"{row.label} {row.middle:.2f}" for row in self.rows)
        return f"{self.title}. {self.x}. Medians: {words}."


def colour(name: str) -> str:
    """Return a colour as the page has it."""
    return PAGE.get(name, name)
