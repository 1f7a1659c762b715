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
    parser.add_argument("--out", type=Path, metavar="PNG", help="write the curves there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import statistics
import sys

import matplotlib as mpl

from repro.comparison import find, group, metric_of, table, trained
from repro.reading import printable_lines
from repro.results import save_figure
from repro.runs import Run
from repro.train.cli import exit_status

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, write the figure, and return the exit status."""
    options = read_options(arguments)
    runs = find(options.runs)
    groups, metric = group(runs), metric_of(runs)
    print(printable_lines(table(groups, metric)))
    if options.out is not None:
        plot(groups, metric, options.out)
        print(f"\ncurves: {options.out}")
    return 0


def plot(groups: dict[str, list[Run]], metric: str, out: Path) -> None:
    """Draw training loss and metric over epochs: the mean of the seeds, with their range shaded."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, key in zip(axes, ("train_loss", metric), strict=True):
        for label, runs in groups.items():
            curves = [
                {record["epoch"]: record[key] for record in trained(run) if key in record} for run in runs
            ]
            x = sorted(set.intersection(*(set(curve) for curve in curves)))  # seeds may differ
            columns = [[curve[epoch] for curve in curves] for epoch in x]
            name = label if len(runs) == 1 else f"{label} ({len(runs)} seeds)"
            (line,) = axis.plot(x, [statistics.fmean(column) for column in columns], label=name)
            low, high = [min(column) for column in columns], [max(column) for column in columns]
            axis.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axis.set(xlabel="epoch", ylabel=key.replace("_", " "))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_ylabel(metric.replace("_", " ") + (" (%)" if metric.endswith("accuracy") else ""))
    axes[1].legend(frameon=False, loc="best")
    save_figure(figure, out)


if __name__ == "__main__":
    sys.exit(main())
