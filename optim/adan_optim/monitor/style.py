"""The style of all figures: plain data, so that it needs no matplotlib."""

from typing import Any

# Okabe and Ito's colours, which people with any common colour blindness tell apart; without their yellow,
# which is hard to see on white. The dark one is also that of text and axes.
INK = "#010203"
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", INK)
LINES = ("-", "--", ":", "-.")  # repeat what colours say
QUIET = "#c4c8ce"  # what is shown only for comparison

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "grid.color": INK,
    "grid.alpha": 0.12,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    # files of the same figure have the same bytes, and their text can be searched
    "svg.fonttype": "none",
    "svg.hashsalt": "adan",
}
