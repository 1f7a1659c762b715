"""The charts of the report: released logs, own runs, and times of a step."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.ledger.charts import Chart, Line, Row, Rows
from repro.ledger.rows import ROOT
from repro.ledger.shown import TASKS, OwnRun, Shown, words
from repro.logs.files import read_log
from repro.logs.log import Log, LogError
from repro.plots import COLOURS, INK

OTHERS = re.compile(r"torch|timm|transformers|apex|bitsandbytes|torchao|.*official")  # in benchmarks


@dataclass
class Curve:
    """The released log of a row as a curve; None if it is not on this machine."""

    shown: Shown
    log: Log | None

    @property
    def column(self) -> str:
        """The column by which the row is judged: that of its published metric, or else the loss."""
        assert self.log is not None
        named = [figure.column for figure in self.shown.row.published if figure.column is not None]
        likely = [*named, "eval_ppl", "eval_loss", "train_loss"]
        return next(name for name in likely if name in self.log.table and len(self.log.series(name)) > 1)

    def add_to(self, chart: Chart, label: str) -> None:
        """Draw it."""
        if self.log is None:
            chart.missing.append(label)
            return
        column = self.column
        chart.x, chart.y = self.log.position, f"{words(column)}, {self.log.units[column]}"
        chart.lines.append(Line(label, self.log.series(column), self.shown.optimizer))


def released(shown: Sequence[Shown]) -> list[Curve]:
    """Return the released logs of all rows that have one."""
    found = []
    for each in shown:
        if each.row.logs:
            try:
                found.append(Curve(each, read_log(each.row)))
            except LogError:
                found.append(Curve(each, None))
    return found


def charts_of_models(curves: Sequence[Curve]) -> list[Chart]:
    """Return a chart for each table and model: the published metric, or the loss if none was published."""
    found: dict[tuple[str, str], Chart] = {}
    for curve in curves:
        row = curve.shown.row
        title = f"{TASKS.get(curve.shown.table, curve.shown.table)}: {row.model}"
        chart = found.setdefault((curve.shown.table, row.model), Chart(title, "", ""))
        curve.add_to(chart, row.title.removeprefix(row.model).lstrip(", "))
    return [chart for chart in found.values() if chart.lines]


def charts_of_rows(curves: Sequence[Curve]) -> dict[str, Chart]:
    """Return the chart of each row whose released log is on this machine, by its name."""
    found = {}
    for curve in curves:
        if curve.log is not None:
            name = curve.shown.row.name
            chart = found[name] = Chart("Released log", "", "", most=40)
            curve.add_to(chart, curve.shown.row.title)
    return found


def charts_of_runs(runs: Sequence[OwnRun]) -> list[Chart]:
    """Return a chart for each data set and metric of some runs; two values are no curve."""
    found: dict[tuple[str, str], Chart] = {}
    for run in (run for run in runs if len(run.values) > 2):
        chart = found.setdefault(
            (run.data, run.metric), Chart(f"Own runs, {run.data}", "epoch", words(run.metric))
        )
        chart.lines.append(Line(Path(run.path).name, run.values, run.optimizer))
    return list(found.values())


def benches() -> Iterator[dict[str, Any]]:
    """Yield a chart of every benchmark of steps, the shortest first: time relative to torch's fused AdamW."""
    for path in sorted((ROOT / "results").glob("*/optimizers.json")):
        content = json.loads(path.read_text())
        machine, times = content["machine"], defaultdict[str, list[tuple[str, float]]](list)
        for model, measured in content["lists"].items():
            for name, row in measured["rows"].items():
                if row.get("ratio"):
                    times[name].append((f"{model}: {row['ratio']:.2f}", row["ratio"]))
        found = [Row(name, INK if OTHERS.match(name) else COLOURS[1], values, not OTHERS.match(name))
                 for name, values in times.items()]  # fmt: skip
        yield {
            "caption": f"{machine['command']} at commit {machine['commit']}: {machine['device']}, "
            f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}.",
            "chart": Rows(
                f"Time of a step of {', '.join(content['lists'])}",
                "torch's fused AdamW = 1, less is better",
                sorted(found, key=lambda row: row.middle),
                (0.5, 1, 2, 5, 10, 20, 50),
            ),
        }
