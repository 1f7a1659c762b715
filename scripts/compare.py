"""Compare finished or unfinished runs: `python scripts/compare.py RUNS... [--out PNG]`.

RUNS are run folders or folders of run folders. Runs that differ only in the seed share a row and a curve.
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

from repro.cli import exit_status
from repro.errors import UserError
from repro.reading import printable_lines
from repro.run import is_free, read_config

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

UNMEASURED = {"step", "lr", "epoch", "train_loss"}  # all that a record has without a measurement


@dataclass
class Run:
    """What a run folder holds: configuration, records of finished epochs, and the summary if there is one."""

    path: Path
    config: dict[str, Any]  # flat
    epochs: list[dict[str, Any]]
    summary: dict[str, Any]

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
    groups = group([load(path) for path in find(options.runs)])
    print(printable_lines(table(groups)))
    if options.out is not None:
        plot(groups, options.out)
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
        UserError: no epoch is finished yet, or the folder is damaged.
    """
    try:
        config = read_config(path / "config.yaml")
        text = (path / "metrics.jsonl").read_text()
        # a run in progress may be in the middle of its last line
        records = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        summary = path / "summary.json"
        epochs = [record for record in map(_own, records) if record.keys() - UNMEASURED]
        if not epochs:
            raise UserError(f"{path}: no epoch is finished yet")
        return Run(path, config, epochs, json.loads(summary.read_text()) if summary.exists() else {})
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a complete run folder ({error})") from error


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs by label; those that differ in nothing but the seed share one."""
    by_identity: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_identity[run.identity].append(run)
    groups = list(by_identity.values())
    keys = sorted({key for runs in groups for key in runs[0].config if key != "seed" and not is_free(key)})
    labels = [str(runs[0].config["optimizer.name"]) for runs in groups]
    for key in ["data.name", "model.name", "optimizer.lr", *keys]:  # as few keys as tell the groups apart
        longer = [
            f"{label}, {key}={runs[0].config.get(key)}" for label, runs in zip(labels, groups, strict=True)
        ]
        if len(set(longer)) > len(set(labels)):
            labels = longer
    return dict(zip(labels, groups, strict=True))


def metric_of(run: Run) -> str:
    """Return the key of the metric that the run is judged by."""
    if "metric" in run.summary:
        return str(run.summary["metric"])
    candidates = [key for key in run.epochs[-1] if key.endswith("accuracy")]
    return candidates[-1] if candidates else "train_loss"


def table(groups: dict[str, list[Run]]) -> str:
    """Return a text table: a row per group, mean ± sample standard deviation over its seeds."""
    metric = metric_of(next(iter(groups.values()))[0])
    rows = [
        ["run", "seeds", "epochs", f"final {metric}", f"best {metric}", "train_loss", "seconds", "samples/s"]
    ]
    for label, runs in groups.items():
        falling = metric.endswith("loss")
        pick = min if falling else max
        speed = [value for run in runs for key, value in run.summary.items() if key.endswith("_per_second")]
        rows.append(
            [
                label,
                str(len(runs)),
                "/".join(sorted({str(run.epochs[-1]["epoch"]) for run in runs})),
                _spread([run.epochs[-1][metric] for run in runs], ".2f"),
                _spread([pick(record[metric] for record in run.epochs) for run in runs], ".2f"),
                _spread([run.epochs[-1]["train_loss"] for run in runs], ".4f"),
                _spread([run.summary["seconds"] for run in runs if run.summary], ".0f"),
                _spread(speed, ".0f"),
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


def plot(groups: dict[str, list[Run]], out: Path) -> None:
    """Write a figure of training loss and metric over epochs: the mean of the seeds, their range shaded."""
    metric = metric_of(next(iter(groups.values()))[0])
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, key in zip(axes, ("train_loss", metric), strict=True):
        for label, runs in groups.items():
            length = min(len(run.epochs) for run in runs)
            x = [record["epoch"] for record in runs[0].epochs[:length]]
            columns = [[run.epochs[i][key] for run in runs] for i in range(length)]
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
