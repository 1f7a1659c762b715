"""Compare runs in a table over seeds, and draw their curves.

RUNS are run folders, or folders of them. Runs that differ only in the seed share a row and a curve.
Unfinished runs have separate rows, without final and best results.

Examples:
    python scripts/compare.py results/comparison/winners/vit-muon
    python scripts/compare.py results/nlp/proxy-lstm_1_adan results/nlp/proxy-lstm_1_adamw --out lstm.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from repro.train.cli import command_line


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS")
    parser.add_argument(
        "--out", type=Path, metavar="PNG", help="write the curves there, and as SVG beside it"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import math
import statistics
import sys
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from repro.comparison import find, group, metric_of, table, trained
from repro.direction import better, higher_is_better
from repro.plots import LOOKS, MOST, STYLE, Look, finish, looks, panels, quantity, rc_context, save
from repro.reading import printable_lines
from repro.runs import Run
from repro.train.cli import exit_status

VARIANTS = {"bfloat16": "_bf16", "int8": "_int8"}  # by state_dtype


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, write the figure, and return the exit status."""
    options = read_options(arguments)
    runs = find(options.runs)
    groups, metric = group(runs), metric_of(runs)
    print(printable_lines(table(groups, metric)))
    if options.out is not None:
        written = plot(groups, metric, options.out)
        print(f"\ncurves: {', '.join(map(str, written))}")
    return 0


@rc_context(STYLE)
def plot(groups: dict[str, list[Run]], metric: str, out: Path) -> list[Path]:
    """Draw training loss and metric over epochs: the mean of the seeds, with their range shaded.

    Of more groups than a reader can tell apart, those with the best results are in colour.
    """
    ends = {label: [last(run, metric) for run in runs] for label, runs in groups.items()}
    order = ranked({label: statistics.fmean(values) for label, values in ends.items()}, metric)
    drawn = looks({label: optimizer(groups[label][0].config) for label in order})
    keys = [*dict.fromkeys(("train_loss", metric))]
    figure, axes = panels(len(keys))
    for axis, key in zip(axes, keys, strict=True):
        for label in groups:
            draw(axis, key, label, groups[label], drawn[label])
        unit = "%" if key.endswith("accuracy") else ""
        axis.set(xlabel="epoch", ylabel=quantity(words(key), unit, better(key)))
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    lengths = {trained(run)[-1]["epoch"] for runs in groups.values() for run in runs}
    comparable = better(metric) and len(lengths) == 1 and len(groups) > 1
    finding = compared(ends, order, metric) if comparable else f"{words(metric)} over epochs".capitalize()
    several = max(len(runs) for runs in groups.values()) > 1
    note = (
        "Lines: means over the seeds; bands: from the lowest to the highest seed."
        if several
        else "One seed each, so that a difference may be chance."
    )
    if len(groups) > MOST:
        note += f" In grey: {len(groups) - MOST} more, which end behind these."
    finish(figure, finding, note)
    return save(figure, out)


def draw(axis: Axes, key: str, label: str, runs: list[Run], look: Look) -> None:
    """Draw a curve of the seeds' mean, and their range."""
    curves = [{record["epoch"]: record[key] for record in trained(run) if key in record} for run in runs]
    x = sorted(set.intersection(*(set(curve) for curve in curves)))  # seeds may differ
    columns = [[curve[epoch] for curve in curves] for epoch in x]
    name = label if len(runs) == 1 else f"{label} ({len(runs)} seeds)"
    axis.plot(x, [statistics.fmean(column) for column in columns], **look.line, label=look.label(name))
    low, high = [min(column) for column in columns], [max(column) for column in columns]
    axis.fill_between(x, low, high, color=look.colour, alpha=0.2, linewidth=0)


def optimizer(config: dict[str, Any]) -> str:
    """Return whose look a run gets: that of its optimizer, or of the variant with small states."""
    name = str(config["optimizer.name"])
    variant = name + VARIANTS.get(str(config.get("optimizer.state_dtype")), "")
    return variant if variant in LOOKS else name


def ranked(means: dict[str, float], metric: str) -> list[str]:
    """Return labels from the best mean to the worst; those that are not finite are the last."""
    sign = {True: -1, False: 1, None: 0}[higher_is_better(metric)]
    return sorted(means, key=lambda label: sign * means[label] if math.isfinite(means[label]) else math.inf)


def compared(ends: dict[str, list[float]], order: list[str], metric: str) -> str:
    """Say which of several groups ends best, and whether its seeds say so too."""
    best, second = order[:2]
    most = "Highest" if higher_is_better(metric) else "Lowest"
    unit = " %" if metric.endswith("accuracy") else ""
    first, next_ = (f"{label}, {statistics.fmean(ends[label]):.4g}{unit}" for label in (best, second))
    apart = min(ends[best]) > max(ends[second]) or max(ends[best]) < min(ends[second])
    doubt = "" if apart else "; the ranges of their seeds overlap"
    return f"{most} final {words(metric)}: {first}; next {next_}{doubt}"


def last(run: Run, key: str) -> float:
    """Return the last value of a key, NaN if there is none."""
    return next((record[key] for record in reversed(trained(run)) if key in record), math.nan)


def words(key: str) -> str:
    """Return a key of the records as text."""
    return key.replace("_", " ")


if __name__ == "__main__":
    sys.exit(main())
