"""The report: one HTML page with the ledger, released and own curves, and times of a step; no script."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from repro import hardware
from repro.direction import higher_is_better
from repro.environment import environment
from repro.errors import UserError
from repro.ledger import rows
from repro.ledger.charts import Chart, Line, bars
from repro.ledger.rows import ROOT, Recipe, Row
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
    own: str

    @property
    def hours(self) -> str:
        """The estimate for one H100."""
        return "" if self.row.cost is None else hardware.show_hours(hardware.gpu_hours(self.row.cost, "H100"))

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def title(self) -> str:
        return self.row.title

    @property
    def status(self) -> str:
        return self.row.status

    @property
    def mood(self) -> str:
        """The class that colours the verdict."""
        return {"verified": "good", "differs": "bad"}.get(self.verdict.partition(":")[0], "wait")

    @property
    def published(self) -> list[str]:
        several = len(self.row.published) > 1
        return [(f"{figure.metric}: " if several else "") + figure.printed for figure in self.row.published]

    @property
    def logged(self) -> list[str]:
        figures = [figure for figure in self.row.published if figure.best is not None]
        return [f"{figure.best}, {figure.final}" for figure in figures]

    @property
    def shows(self) -> str:
        """Which of the log's values the table shows, where there is a log."""
        return ", ".join(
            dict.fromkeys(figure.shows for figure in self.row.published if figure.best is not None)
        )

    @property
    def notes(self) -> list[str]:
        """All that is known to be uncertain about the row."""
        unknown = [f"Not published: {key}: {what}" for key, what in self.row.unpublished.items()]
        chosen = [f"Chosen by us: {key}: {why}" for key, why in self.row.chosen.items()]
        return [*(discrepancy.what for discrepancy in self.row.discrepancies), *unknown, *chosen]


def write(out: Path, runs: Sequence[Path], comparison: dict[str, Any] | None = None) -> str:
    """Write the page to `out` and return a line that says what is in it, and one for each run that is not.

    Args:
        runs: folders in and below which our own run folders are looked for.
        comparison: of optimizers, see `benchmarks.comparison.page.section`.
    """
    recipes = [rows.load(name) for name in rows.names()]
    found, left_out = finished(runs)
    shown = [
        Shown(recipe.row, verdict, _own(recipe, found))
        for recipe, verdict in zip(recipes, rows.verdicts().values(), strict=True)
    ]
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
    text = _template().render(
        made=_made(),
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
    """One chart for each table and model: the published metric, or the loss where none was published."""
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
    """The column of the log that the row is judged by."""
    named = [figure.column for figure in row.published if figure.column is not None]
    likely = [*named, "eval_ppl", "eval_loss", "train_loss"]
    return next(column for column in likely if column in log.table and len(log.series(column)) > 1)


def run_curves(lines: Sequence[tuple[str, str, Line]]) -> list[Chart]:
    """One chart for each data set and metric: that of our own runs over epochs, averaged weights or not."""
    charts: dict[tuple[str, str], Chart] = {}
    for data, kind, line in lines:
        chart = charts.setdefault((data, kind), Chart(data, "epoch", kind))
        chart.higher_is_better = higher_is_better(kind) is not False
        chart.lines.append(line)
    return list(charts.values())


def _line(run: Run) -> tuple[str, str, Line]:
    """Data set, metric and curve of a run."""
    assert run.summary is not None
    log, metric = read(run.path / METRICS), run.summary["metric"]
    if log.faults:
        raise UserError(log.faults[0])
    measured = log.table.dropna(subset=[metric])
    values = pd.Series(measured[metric].to_numpy(), measured["epoch"].to_numpy())
    return (
        str(run.config.get("data.name")),
        metric.removeprefix("ema_"),
        Line(run.path.name, values, own=True),
    )


def _run(run: Run) -> dict[str, str]:
    path, summary, config = run.path, run.summary, run.config
    assert summary is not None
    metric = summary["metric"]
    return {
        "path": str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path),
        "what": f"{summary['model']} on {config.get('data.name')}, {summary['epochs']} epochs",
        "optimizer": f"{summary['optimizer']}, lr {config['optimizer.lr']:g}",
        "result": f"{metric} {summary['final'][metric]:.4g} (best {summary['best'][metric]:.4g})",
        "time": f"{summary['seconds']:.0f} s",
        "commit": (run.starts[-1].get("commit") or "")[:10] if run.starts else "",
    }


def _benches() -> Iterator[dict[str, Any]]:
    """Bar charts of every benchmark of steps: time relative to torch's fused AdamW, shortest first."""
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
    tables: dict[str, list[Shown]] = defaultdict(list)
    for row in shown:
        tables[row.name.partition("/")[0]].append(row)
    return [
        {"title": " / ".join(dict.fromkeys(each.row.table for each in group)), "rows": group}
        for group in tables.values()
    ]


def counts() -> list[tuple[str, int]]:
    """Return the numbers at the top of the page but that of released curves, each after what it counts."""
    shown = [Shown(rows.load(name).row, verdict, "") for name, verdict in rows.verdicts().items()]
    return [
        ("published rows", len(shown)),
        ("verified against what was released", sum(row.mood == "good" for row in shown)),
        ("differ from it", sum(row.mood == "bad" for row in shown)),
        ("runnable today", sum(row.status == "runnable" for row in shown)),
    ]


def _own(recipe: Recipe, found: Sequence[Run]) -> str:
    newest = last(found, recipe.row.name)
    return "" if newest is None else describe(newest, recipe)


def _made() -> str:
    now = environment()
    commit = (now["commit"] or "unknown")[:10]
    return f"Made on {now['time'][:10]} at commit {commit}: {' '.join(now['command'])}"


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(
        "page.html"
    )
