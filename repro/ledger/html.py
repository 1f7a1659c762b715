"""The report: one HTML page, without scripts, with the ledger, curves and times of a step."""

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from repro import hardware
from repro.direction import higher_is_better
from repro.environment import commit
from repro.errors import UserError
from repro.ledger import rows
from repro.ledger.charts import Chart, Line, bars
from repro.ledger.rows import ROOT, Row
from repro.ledger.runs import describe, finished, last
from repro.logs import read
from repro.logs.files import read_log
from repro.logs.log import Log, LogError
from repro.runs import METRICS, Run
from repro.train.run_folder import write_atomically


@dataclass
class Shown:
    """A row of the ledger as the page shows it."""

    row: Row
    verdict: str
    own: str  # our own result

    @property
    def time(self) -> str:
        """The estimated time on one H100."""
        return "" if self.row.cost is None else hardware.show_time(hardware.gpu_hours(self.row.cost, "H100"))

    @property
    def mood(self) -> str:
        """The CSS class of the verdict."""
        return {"verified": "good", "differs": "bad"}.get(self.verdict.partition(":")[0], "wait")

    @property
    def published(self) -> list[str]:
        """The published figures, with the name of the metric if there are several."""
        several = len(self.row.published) > 1
        return [(f"{figure.metric}: " if several else "") + figure.printed for figure in self.row.published]

    @property
    def logged(self) -> list[str]:
        """The best and final value of each figure in the released log."""
        return [f"{each.best}, {each.final}" for each in self.row.published if each.best is not None]

    @property
    def shows(self) -> str:
        """Which of the log's values the table shows, if there is a log."""
        return ", ".join(dict.fromkeys(each.shows for each in self.row.published if each.best is not None))

    @property
    def notes(self) -> list[str]:
        """Everything known to be uncertain about the row."""
        unknown = [f"Not published: {key}: {what}" for key, what in self.row.unpublished.items()]
        chosen = [f"Chosen by us: {key}: {why}" for key, why in self.row.chosen.items()]
        return [*(discrepancy.what for discrepancy in self.row.discrepancies), *unknown, *chosen]


def write(out: Path, runs: Sequence[Path], comparison: dict[str, Any] | None = None) -> str:
    """Write the page to `out`; return a line on its contents and one for each run that was left out.

    Args:
        runs: folders that are searched for our own runs.
        comparison: of optimizers, see `benchmarks.comparison.page.section`.
    """
    recipes = [rows.load(name) for name in rows.names()]
    found, left_out = finished(runs)
    shown = []
    for recipe, verdict in zip(recipes, rows.verdicts().values(), strict=True):
        newest = last(found, recipe.row.name)
        shown.append(Shown(recipe.row, verdict, "" if newest is None else describe(newest, recipe)))
    shown_runs, lines = [], []
    for run in found:
        try:
            about, line = _run(run), _line(run)
        except UserError as error:
            left_out.append(str(error))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            left_out.append(f"{run.path}: its files do not belong together ({type(error).__name__}: {error})")
        else:
            shown_runs.append(about)
            lines.append(line)
    curves = released_curves([recipe.row for recipe in recipes])
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    text = page.get_template("page.html").render(
        made=f"Made on {time.strftime('%Y-%m-%d')} at commit {(commit() or 'unknown')[:10]}: "
        + " ".join(sys.argv),
        counts=[*counts(), ("released curves read", sum(len(chart.lines) for chart in curves))],
        tables=_tables(shown),
        curves=curves,
        runs=shown_runs,
        left_out=left_out,
        run_curves=run_curves(lines),
        benches=list(_benches()),
        comparison=comparison,
    )
    write_atomically(out, text)
    made = f"{out}: {len(recipes)} rows, {len(curves)} charts of released curves, {len(shown_runs)} own runs"
    return "\n".join([made, *(f"left out: {line}" for line in left_out)])


def released_curves(published: Sequence[Row]) -> list[Chart]:
    """Return a chart for each table and model: the published metric, or the loss if none was published."""
    charts: dict[tuple[str, str], Chart] = {}
    for row in published:
        if not row.logs:
            continue
        table = row.name.partition("/")[0]
        chart = charts.setdefault((table, row.model), Chart(f"{table}: {row.model}", "", ""))
        try:
            log = read_log(row)
        except LogError:
            chart.missing.append(row.name)
            continue
        column = _column(row, log)
        chart.x, chart.y = log.position, f"{column}, {log.units[column]}"
        chart.higher_is_better = higher_is_better(column) is not False
        chart.lines.append(Line(row.name.partition("/")[2], log.series(column)))
    return [chart for chart in charts.values() if chart.lines]


def _column(row: Row, log: Log) -> str:
    """Return the column of the log by which the row is judged."""
    named = [figure.column for figure in row.published if figure.column is not None]
    likely = [*named, "eval_ppl", "eval_loss", "train_loss"]
    return next(column for column in likely if column in log.table and len(log.series(column)) > 1)


def run_curves(lines: Sequence[tuple[str, str, Line]]) -> list[Chart]:
    """Return a chart of our own runs for each data set and metric, with averaged weights or without."""
    charts: dict[tuple[str, str], Chart] = {}
    for data, kind, line in lines:
        chart = charts.setdefault((data, kind), Chart(data, "epoch", kind))
        chart.higher_is_better = higher_is_better(kind) is not False
        chart.lines.append(line)
    return list(charts.values())


def _line(run: Run) -> tuple[str, str, Line]:
    """Return the data set, metric and curve of a run."""
    assert run.summary is not None
    log, metric = read(run.path / METRICS), run.summary["metric"]
    if log.faults:
        raise UserError(log.faults[0])
    measured = log.table.dropna(subset=[metric])
    values = pd.Series(measured[metric].to_numpy(), measured["epoch"].to_numpy())
    line = Line(run.path.name, values, own=True)
    return str(run.config.get("data.name")), metric.removeprefix("ema_"), line


def _run(run: Run) -> dict[str, str]:
    path, summary, config = run.path, run.summary, run.config
    assert summary is not None
    metric = summary["metric"]
    return {
        "path": str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path),
        "what": f"{summary['model']} on {config.get('data.name')}, {summary['epochs']} epochs",
        "optimizer": f"{summary['optimizer']}, lr {config['optimizer.lr']:g}",
        "result": f"{metric} {summary['final'][metric]:.4g} (best {summary['best'][metric]:.4g})",
        "time": hardware.show_time(summary["seconds"] / 3600),
        "commit": (run.starts[-1].get("commit") or "")[:10] if run.starts else "",
    }


def _benches() -> Iterator[dict[str, Any]]:
    """Yield bar charts of every benchmark of steps: time relative to torch's fused AdamW, shortest first."""
    for path in sorted((ROOT / "results").glob("*/optimizers.json")):
        content = json.loads(path.read_text())
        machine = content["machine"]
        charts = []
        for name, measured in content["lists"].items():
            found = [(label, row["ratio"]) for label, row in measured["rows"].items() if row.get("ratio")]
            values = [(label, ratio, _is_ours(label)) for label, ratio in sorted(found, key=lambda x: x[1])]
            title = f"{name}: {measured['parameters'] / 1e6:.1f} M parameters"
            charts.append((title, bars(title, "time, torch's fused AdamW = 1", values)))
        yield {
            "caption": f"{machine['command']} at commit {machine['commit']}: {machine['device']}, "
            f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}. Ours in colour.",
            "charts": charts,
        }


def _is_ours(label: str) -> bool:
    return re.match(r"(torch|timm|transformers|apex|bitsandbytes|torchao|.*official)", label) is None


def _tables(shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """Return the rows by table; they come table by table."""
    groups = [list(group) for _, group in groupby(shown, lambda each: each.row.name.partition("/")[0])]
    titles = [" / ".join(dict.fromkeys(each.row.table for each in group)) for group in groups]
    return [{"title": title, "rows": group} for title, group in zip(titles, groups, strict=True)]


def counts() -> list[tuple[str, int]]:
    """Return the numbers at the top of the page, with their labels, except that of released curves."""
    shown = [Shown(rows.load(name).row, verdict, "") for name, verdict in rows.verdicts().items()]
    return [
        ("published rows", len(shown)),
        ("verified against what was released", sum(each.mood == "good" for each in shown)),
        ("differ from it", sum(each.mood == "bad" for each in shown)),
        ("runnable today", sum(each.row.status == "runnable" for each in shown)),
    ]
