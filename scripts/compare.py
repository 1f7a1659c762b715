"""Compare runs: `python scripts/compare.py RUNS... [--out PNG]`.

RUNS are run folders or folders of run folders. Runs that differ only in the seed share a row and a curve.
Runs that have not finished have rows of their own, without final and best results.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

sys.path.append(str(Path(__file__).resolve().parent.parent))  # last, so that an installed optim comes first

from repro.errors import UserError
from repro.reading import printable_lines
from repro.train.cli import exit_status
from repro.train.run_folder import is_free, read_config
from repro.train.throughput import sample_rate

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator


@dataclass
class Run:
    """What a run folder holds: configuration, records, and the summary if the run has finished."""

    path: Path
    config: dict[str, Any]  # flat
    records: list[dict[str, Any]]  # with a train_loss, which all have but the closing one
    summary: dict[str, Any] | None
    state: str  # finished | unfinished | diverged

    @property
    def identity(self) -> str:
        """The same text for runs that differ in nothing but the seed."""
        counted = {key: value for key, value in self.config.items() if key != "seed" and not is_free(key)}
        return json.dumps(counted, sort_keys=True)


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, write the figure, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS")
    parser.add_argument("--out", type=Path, metavar="PNG", help="write the curves there")
    options = parser.parse_args(arguments)
    runs = [load(path) for path in find(options.runs)]
    groups, metric = group(runs), metric_of(runs)
    print(printable_lines(table(groups, metric)))
    if options.out is not None:
        plot(groups, metric, options.out)
        print(f"\ncurves: {options.out}")
    return 0


def find(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders among and below `paths`.

    Raises:
        UserError: a path without any.
    """
    found: dict[Path, None] = {}  # a set that keeps its order
    for path in paths:
        runs = sorted(file.parent for file in path.rglob("metrics.jsonl"))
        if not runs:
            raise UserError(f"{path}: no run in it (no metrics.jsonl, there or below)")
        found.update(dict.fromkeys(runs))
    return list(found)


def load(path: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: the folder is damaged or not a run's, or it has no record yet.
    """
    try:
        config = read_config(path / "config.yaml")
        text = (path / "metrics.jsonl").read_text()
        # a run in progress may be in the middle of its last line
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        records = [_own(record) for record in lines if "train_loss" in record]
        if not records:
            raise UserError(f"{path}: the run has no record yet")
        if (file := path / "summary.json").exists():
            return Run(path, config, records, json.loads(file.read_text()), "finished")
        state = "diverged" if (path / "diverged.json").exists() else "unfinished"
        return Run(path, config, records, None, state)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a complete run folder ({error})") from error


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs by label; those that differ in nothing but the seed share one.

    A run that has not finished shares its label only with others of the same state.
    """
    by_identity: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        by_identity[run.identity, run.state].append(run)
    groups = list(by_identity.values())
    keys = sorted({key for runs in groups for key in runs[0].config if key != "seed" and not is_free(key)})
    labels = [str(runs[0].config["optimizer.name"]) for runs in groups]
    for key in ["data.name", "model.name", "optimizer.lr", *keys]:  # as few keys as tell the groups apart
        longer = [
            f"{label}, {key}={runs[0].config.get(key)}" for label, runs in zip(labels, groups, strict=True)
        ]
        if len(set(longer)) > len(set(labels)):
            labels = longer
    states = ["" if runs[0].summary else f" ({runs[0].state})" for runs in groups]
    return {label + state: runs for label, state, runs in zip(labels, states, groups, strict=True)}


def metric_of(runs: Sequence[Run]) -> str:
    """Return the key of the metric that the runs are judged by.

    Raises:
        UserError: there are several; results of different recipes cannot be compared.
    """
    metrics = {str(run.summary["metric"]): run.path for run in runs if run.summary}
    if len(metrics) > 1:
        several = ", ".join(f"{metric} ({path})" for metric, path in metrics.items())
        raise UserError(f"the runs have different metrics: {several}; compare those of one recipe")
    if metrics:
        return next(iter(metrics))
    accuracies = [key for run in runs for rec in run.records for key in rec if key.endswith("accuracy")]
    return accuracies[-1] if accuracies else "train_loss"


def table(groups: dict[str, list[Run]], metric: str) -> str:
    """Return a text table: a row per group, mean ± sample standard deviation over its seeds."""
    finished = [run.summary for runs in groups.values() for run in runs if run.summary]
    units = {sample_rate(summary)[0] for summary in finished}
    unit = units.pop() if len(units) == 1 else "samples"
    rows = [
        ["run", "seeds", "epochs", f"final {metric}", f"best {metric}", "train_loss", "seconds", f"{unit}/s"]
    ]
    for label, runs in groups.items():
        summaries = [run.summary for run in runs if run.summary]
        epochs = {run.records[-1]["epoch"] for run in runs}
        rows.append(
            [
                label,
                str(len(runs)),
                "/".join(f"{epoch:.4g}" for epoch in sorted(epochs)),
                *(
                    _spread([summary[key][metric] for summary in summaries], ".4g")
                    for key in ("final", "best")
                ),
                _spread([run.records[-1]["train_loss"] for run in runs], ".4f"),
                _spread([summary["seconds"] for summary in summaries], ".0f"),
                _spread([sample_rate(summary)[1] for summary in summaries], ".0f"),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def plot(groups: dict[str, list[Run]], metric: str, out: Path) -> None:
    """Write a figure of training loss and metric over epochs: the mean of the seeds, their range shaded."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, key in zip(axes, ("train_loss", metric), strict=True):
        for label, runs in groups.items():
            curves = [
                {record["epoch"]: record[key] for record in run.records if key in record} for run in runs
            ]
            x = sorted(set.intersection(*(set(curve) for curve in curves)))  # seeds may be logged differently
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
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:  # ValueError: a suffix that matplotlib does not know
        raise UserError(f"--out={out}: cannot write the figure: {error}") from error
    finally:
        plt.close(figure)


def _own(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what tracking adds to it."""
    return {k: v for k, v in record.items() if k != "verdict" and not k.startswith("released_")}


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    mean = format(statistics.fmean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {format(statistics.stdev(values), form)}"


if __name__ == "__main__":
    sys.exit(main())
