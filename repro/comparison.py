"""Runs side by side: those that differ only in the seed are one row of a table."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adan_optim.text import aligned
from repro.errors import UserError
from repro.hardware import show_time
from repro.runs import METRICS, Run, is_free, read, sample_rate


def find(paths: Sequence[Path]) -> list[Run]:
    """Return the runs in and below folders.

    Raises:
        UserError: a path has no run, or a run is damaged or has no record yet.
    """
    found: dict[Path, Run] = {}
    for path in paths:
        folders = sorted(file.parent for file in path.rglob(METRICS))
        if not folders:
            raise UserError(f"{path}: no run in it (no {METRICS}, there or below)")
        found |= {folder: read(folder) for folder in folders}
    for path, run in found.items():
        if not trained(run):
            raise UserError(f"{path}: the run has no record yet")
    return list(found.values())


def trained(run: Run) -> list[dict[str, Any]]:
    """Return all records except the closing one, without the values that tracking adds."""
    return [
        {k: v for k, v in record.items() if k != "verdict" and not k.startswith("released_")}
        for record in run.records
        if "train_loss" in record
    ]


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs by label; those that differ only in the seed share one.

    An unfinished run shares its label only with others of the same state.
    """
    by_identity: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        by_identity[run.identity, run.state].append(run)
    groups = list(by_identity.values())
    keys = sorted({key for runs in groups for key in runs[0].config if key != "seed" and not is_free(key)})
    labels = [str(runs[0].config["optimizer.name"]) for runs in groups]
    for key in ["data.name", "model.name", "optimizer.lr", *keys]:  # only the keys that tell the groups apart
        longer = [
            f"{label}, {key}={runs[0].config.get(key)}" for label, runs in zip(labels, groups, strict=True)
        ]
        if len(set(longer)) > len(set(labels)):
            labels = longer
    states = ["" if runs[0].summary else f" ({runs[0].state})" for runs in groups]
    return {label + state: runs for label, state, runs in zip(labels, states, groups, strict=True)}


def metric_of(runs: Sequence[Run]) -> str:
    """Return the key of the runs' metric.

    Raises:
        UserError: there are several, so the runs are of different recipes.
    """
    metrics = {str(run.summary["metric"]): run.path for run in runs if run.summary}
    if len(metrics) > 1:
        several = ", ".join(f"{metric} ({path})" for metric, path in metrics.items())
        raise UserError(f"the runs have different metrics: {several}; compare those of one recipe")
    if metrics:
        return next(iter(metrics))
    keys = ["train_loss", *(key for run in runs for record in trained(run) for key in record)]
    return next((key for key in reversed(keys) if key.endswith("accuracy")), "train_loss")


def table(groups: dict[str, list[Run]], metric: str) -> str:
    """Return a text table with a row per group: mean ± sample standard deviation over its seeds."""
    finished = [run.summary for runs in groups.values() for run in runs if run.summary]
    units = {sample_rate(summary)[0] for summary in finished}
    unit = units.pop() if len(units) == 1 else "samples"
    head = ["seeds", "epochs", f"final {metric}", f"best {metric}", "train_loss", "time", f"{unit}/s"]
    rows = [["run", *head]]
    for label, runs in groups.items():
        summaries = [run.summary for run in runs if run.summary]
        epochs = {trained(run)[-1]["epoch"] for run in runs}
        rows.append(
            [
                label,
                str(len(runs)),
                "/".join(f"{epoch:.4g}" for epoch in sorted(epochs)),
                *(
                    _spread([each[key][metric] for each in summaries], "{:.4g}".format)
                    for key in ("final", "best")
                ),
                _spread([trained(run)[-1]["train_loss"] for run in runs], "{:.4f}".format),
                _spread([summary["seconds"] / 3600 for summary in summaries], show_time),
                _spread([sample_rate(summary)[1] for summary in summaries], "{:,.0f}".format),
            ]
        )
    return "\n".join(aligned(rows, right=head, rule=True))


def _spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    if not values:
        return "-"
    mean = show(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {show(statistics.stdev(values))}"
