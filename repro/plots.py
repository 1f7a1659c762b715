"""One style for all figures: fonts, colours, the look of each optimizer, and files as PNG and SVG.

    with rc_context(STYLE):
        figure, [axes] = panels(1)
        axes.plot(steps, losses, **look("adan").line, label="Adan")
        finish(figure, "Adan ends lower than AdamW", note="Mean of 3 seeds; band: their range.")
    save(figure, Path("losses"))  # losses.png, losses.svg

An optimizer has the same colour, marker and line style in every figure. Colours are Okabe and Ito's, for the
colour-blind; markers and line styles repeat what they say, for print in black and white.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from adan_optim.monitor.style import COLOURS, INK, LINES, QUIET, STYLE
from repro.errors import UserError
from repro.publish import replacing

__all__ = [
    "COLOURS",
    "INK",
    "LOOKS",
    "MOST",
    "QUIET",
    "STYLE",
    "Look",
    "caption",
    "finish",
    "look",
    "looks",
    "panels",
    "quantity",
    "rc_context",
    "save",
    "save_pictures",
]

MOST = len(COLOURS)  # series that a reader can tell apart in a panel
WIDTH = 6.4  # inches of a figure: at half a page or on a phone its text is still readable
DPI = 150
SUFFIXES = (".png", ".svg")


@dataclass(frozen=True)
class Look:
    """How a series is drawn."""

    colour: str
    marker: str
    dashes: str

    @property
    def line(self) -> dict[str, Any]:
        """Keywords of Axes.plot for a line."""
        behind = {"linewidth": 1.0, "zorder": 1.5} if self.colour == QUIET else {}
        return {"color": self.colour, "linestyle": self.dashes, **behind}

    @property
    def points(self) -> dict[str, Any]:
        """Keywords of Axes.plot for a line with a marker at each point."""
        return {**self.line, "marker": self.marker}

    def label(self, text: str) -> str | None:
        """Return the label of the series; None if it is only shown for comparison, without one."""
        return None if self.colour == QUIET else text


_VERMILLION, _BLUE, _GREEN, _ORANGE, _PURPLE, _SKY, _ = COLOURS
# Each colour is a family; the first of it has the solid line.
_FAMILIES = {
    INK: {"adamw": "o", "adam": "s", "adam_mini": "^", "adam8bit": "v"},
    _VERMILLION: {"adan": "D", "adan_bf16": "s", "adan_int8": "v"},
    _BLUE: {"muon": "P", "soap": "X", "lars": "<"},
    _GREEN: {"nadamw": "^", "ademamix": "v", "mars": "d"},
    _ORANGE: {"lamb": "s", "lion": "*", "sgd": "h", "rmsprop": "p"},
    _PURPLE: {"shampoo": "p", "adafactor": "h", "sophia": "8"},
    _SKY: {"schedule_free_adamw": ">", "schedule_free_adan": "<", "prodigy": "d", "prodigy_adan": "D"},
}
LOOKS = {
    name: Look(colour, marker, dashes)
    for colour, family in _FAMILIES.items()
    for (name, marker), dashes in zip(family.items(), LINES, strict=False)
}


def look(optimizer: str) -> Look:
    """Return the look of an optimizer, by its name in configs/optimizer or in the fair comparison.

    Raises:
        KeyError: it has none; `looks` gives one to any series.
    """
    return LOOKS[optimizer]


def looks(series: Mapping[str, str | None]) -> dict[str, Look]:
    """Return a look for each series of a figure: no two the same among the first MOST, grey for the others.

    An optimizer's first series has its look. Further ones have its colour and another line style; what is no
    known optimizer has a colour that none of the known ones has, as long as there is one.

    Args:
        series: the name of the optimizer by label; None or an unknown name for other things.
    """
    found: dict[str, Look] = {}
    front = dict([*series.items()][:MOST])
    for label, name in front.items():
        if name in LOOKS and LOOKS[name] not in found.values():
            found[label] = LOOKS[name]
    used = {each.colour for each in found.values()}
    order = sorted(COLOURS, key=lambda colour: colour in used)  # stable
    codes = product(LINES, zip(order, "osD^vPX", strict=True))
    every = [Look(colour, marker, dashes) for dashes, (colour, marker) in codes]
    for label, name in front.items():
        if label not in found:
            taken = {(each.colour, each.dashes) for each in found.values()}
            free = [each for each in every if (each.colour, each.dashes) not in taken]
            own = [each for each in free if name in LOOKS and each.colour == LOOKS[name].colour]
            found[label] = (own or free)[0]
    return {label: found.get(label, Look(QUIET, "", "-")) for label in series}


def panels(number: int, columns: int = 2, height: float = 2.6, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure with a number of panels, at most `columns` in a row.

    Args:
        height: of a row, in inches; `finish` adds what titles and the legend need.
        options: of Figure.subplots, such as sharex.
    """
    columns = min(columns, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(WIDTH, rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for each in axes[number:]:
        each.remove()
    return figure, axes[:number]


def finish(figure: Figure, finding: str, note: str = "") -> None:
    """Say above a figure what it shows, and below it what the reader must know; one legend of all panels.

    There is no legend below if a panel has one of its own, or no series has a label.

    Args:
        finding: computed from the data; where none can be, the question.
        note: how many seeds, what a band is, which direction is better.
    """
    finding, note = textwrap.fill(finding, 66), textwrap.fill(note, 100)
    figure.suptitle(finding, x=0.01, ha="left", parse_math=False)  # a path may have dollars
    handles = {
        textwrap.fill(label, 70): handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    rows = 0
    if handles and not any(axes.get_legend() for axes in figure.axes):
        columns = max(1, 84 // (7 + max(map(len, handles))))  # as many as there is room for
        rows = -(-len(handles) // columns)
        below = figure.legend(
            [*handles.values()], [*handles], loc="outside lower left", ncols=columns,
            title=note, title_fontsize=8, alignment="left",
        )  # fmt: skip
        for text in below.get_texts():
            text.set_parse_math(False)
    elif note:
        figure.supxlabel(note, x=0.01, ha="left", fontsize=8)
    lines = finding.count("\n") + note.count("\n") + (2 if note else 1) + rows
    figure.set_size_inches(WIDTH, figure.get_size_inches()[1] + 0.19 * lines)  # panels keep their height


def caption(figure: Figure) -> str:
    """Return in a line what a figure after `finish` shows: the text that stands for the picture in a page."""
    first = figure.axes[0]
    x, y = (label.partition("\n")[0] for label in (first.get_xlabel(), first.get_ylabel()))
    titles = [title for axes in figure.axes if (title := axes.get_title(loc="left").partition("\n")[0])]
    about = [f"{y} over {x}" if y else x] if x else []
    about += [f"panels: {'; '.join(titles)}"] if len(titles) > 1 else titles
    more = f" ({'; '.join(about)})" if about else ""
    return f"{figure.get_suptitle()}{more}".replace("\n", " ")


def quantity(name: str, unit: str = "", better: str = "") -> str:
    """Return the label of a y axis: what is shown, its unit, and which values are better."""
    lines = textwrap.wrap(f"{name}, {unit}" if unit else name, 28, max_lines=2, placeholder=" ...")
    return "\n".join([*lines, better] if better else lines)


def save(figure: Figure, out: Path) -> list[Path]:
    """Write a figure as PNG and as SVG, both with the same bytes each time; return the two paths.

    Args:
        out: one of the two, or their name without a suffix.

    Raises:
        UserError: the suffix is another one, or the files cannot be written.
        ValueError: a panel has more than MOST series with a label.
    """
    for axes in figure.axes:
        labels = axes.get_legend_handles_labels()[1]
        if len(labels) > MOST:
            raise ValueError(
                f"{len(labels)} series in the panel {axes.get_title(loc='left')!r}: a reader tells at most "
                f"{MOST} apart; split the panel, or draw the others in QUIET without a label"
            )
    if out.suffix not in ("", *SUFFIXES):
        raise UserError(
            f"{out}: a figure is written as {' and '.join(SUFFIXES)}; end the name in one of them"
        )
    with rc_context(STYLE):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # each file would move things a little further
        svg = io.BytesIO()
        figure.savefig(svg, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
        png = _png(figure, Image.Quantize.MEDIANCUT)  # keeps the colours of lines
    paths = [out.with_suffix(suffix) for suffix in SUFFIXES]
    _write(paths[0], png)
    _write(paths[1], svg.getvalue())
    return paths


@rc_context(STYLE)
def save_pictures(
    rows: Mapping[str, ArrayLike], out: Path, finding: str, columns: Sequence[str] = (), note: str = ""
) -> None:
    """Write rows of small pictures as PNG, with a label above each row, and above each column of the first.

    Args:
        rows: pictures [number, height, width, 3] in 0..1 by label, all of one size.
        finding: the title, see `finish`.
        note: below the rows.

    Raises:
        UserError: the file cannot be written.
    """
    arrays = {label: np.asarray(row, np.float32) for label, row in rows.items()}
    number, high, wide = max(arrays.values(), key=len).shape[:3]
    gap = max(1, wide // 24)
    margin = 0.05  # inches, as all that follow
    side = min((WIDTH - margin) / number, 1.6)  # of a picture with its gap
    tall = side * high / (wide + gap)
    title, below = textwrap.wrap(finding, 66), textwrap.wrap(note, 100)
    above = 0.14 * max((label.count("\n") + 1 for label in columns), default=0) + 0.1 * bool(columns)
    label_height = 0.2 if any(rows) else 0
    height = 0.19 * (len(title) + len(below)) + above + len(rows) * (label_height + tall + 0.08) + 0.1
    figure = Figure(figsize=(WIDTH, height))

    def write(x: float, top: float, text: str, **style: Any) -> None:
        figure.text(x / WIDTH, 1 - top / height, text, va="top", parse_math=False, **style)

    write(margin, margin, "\n".join(title), fontsize=11, fontweight="bold")
    top = 0.19 * len(title) + 0.1
    for place, label in enumerate(columns):
        write(margin + (place + 0.5) * side, top, label, ha="center", fontsize=8)
    top += above
    for label, row in arrays.items():
        write(margin, top, label, fontsize=9)
        strip = np.concatenate(np.pad(row, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=1), axis=1)
        share = len(row) * side / WIDTH, tall / height
        axes = figure.add_axes((margin / WIDTH, 1 - (top + label_height) / height - share[1], *share))
        axes.imshow(strip.clip(0, 1), aspect="auto")
        axes.axis("off")
        top += label_height + tall + 0.08
    write(margin, top, "\n".join(below), fontsize=8)
    _write(out, _png(figure, Image.Quantize.MAXCOVERAGE))  # no colour is far off


def _png(figure: Figure, colours: Image.Quantize) -> bytes:
    """Return the file of a figure, with 256 colours, which take a third of the space of all."""
    whole, few = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, dpi=DPI, facecolor="white")
    kmeans = 10 if colours is Image.Quantize.MAXCOVERAGE else 0
    Image.open(whole).convert("RGB").quantize(256, colours, kmeans).save(few, "PNG", optimize=True)
    return few.getvalue()


def _write(out: Path, content: bytes) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"{out}: cannot write the figure: {error}") from error
