"""The comparison's section of the report: its claims, tables and charts."""

import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd

from benchmarks.comparison.claims import claims
from benchmarks.comparison.design import LADDER, OPTIMIZERS, REFERENCE, TASKS
from benchmarks.comparison.figures import finished_tasks
from benchmarks.comparison.measures import finals, in_times, multiplier
from benchmarks.comparison.page import final_losses, multipliers
from benchmarks.comparison.records import Record, Stage, select
from repro.ledger.charts import Chart, Line, Row, Rows
from repro.plots import MOST, look

COMPARED = [name for name, about in OPTIMIZERS.items() if not about.of]  # without variants of another


def section(records: Sequence[Record]) -> dict[str, Any] | None:
    """Return the content of the section, or None without results.

    The keys: headline, a chart of all step multipliers or None, and its caption; about, what it is; claims;
    tables, each with title, head and rows; charts of curves.
    """
    tasks = finished_tasks(records)
    if not tasks:
        return None
    tables = {
        "Final validation loss, mean of the seeds with its interval of 95 %; the least is bold": final_losses,
        "Step multiplier: AdamW's steps to an optimizer's final loss, over the own": multipliers,
    }
    return {
        "headline": headline(records, tasks),
        "caption": f"AdamW's steps to an optimizer's final loss, over the optimizer's own, on {len(tasks)} "
        "small tasks; 2 means half of AdamW's steps. A bar is the median, a hollow dot is beyond "
        "AdamW's shortest or longest runs.",
        "about": "Small models, every optimizer tuned by the same rule, then run with other seeds. "
        "results/comparison has all tables and the runs behind them, docs/comparison.md says how. What is "
        "confirmed or not here is so at this scale.",
        "claims": claims(records),
        "tables": [
            {"title": title, "head": head, "rows": rows}
            for title, make in tables.items()
            for head, *rows in [make(records)]
        ],
        "charts": [chart for task in tasks if (chart := curves(records, task)).lines],
    }


def headline(records: Sequence[Record], tasks: Sequence[str]) -> Rows | None:
    """Return the chart of all step multipliers, the largest median first; None if there are none yet."""
    found = []
    for name in COMPARED:
        known = [(task, m) for task in tasks if (m := multiplier(records, task, name)) is not None]
        if known and name != REFERENCE:
            values = [(f"{TASKS[task].title}: {in_times(m)}", m.mean) for task, m in known]
            found.append(Row(OPTIMIZERS[name].title, look(name).colour, values, loud=name == "adan"))
    if not found:
        return None
    found.sort(key=lambda row: -row.middle)
    adan = [
        f"{value:.2f}" for row in found if row.loud for _, value in sorted(row.values, key=lambda v: v[1])
    ]
    title = f"Step multipliers: Adan {adan[0]} to {adan[-1]}" if adan else "Step multipliers"
    return Rows(title, "AdamW = 1, more is better", found, LADDER)


def curves(records: Sequence[Record], task: str) -> Chart:
    """Return the validation losses of a task by step, each the mean of the seeds at the optimizer's best.

    The optimizers are AdamW, Adan, and those with the least losses.
    """
    means = {name: statistics.fmean(of) for name in COMPARED if (of := finals(records, task, name))}
    leaders = list(dict.fromkeys([REFERENCE, "adan", *sorted(means, key=means.__getitem__)]))[:MOST]
    chart = Chart(TASKS[task].title, "step", f"validation loss, {TASKS[task].unit}")
    for name in leaders:
        runs = select(records, task=task, optimizer=name, stage=Stage.SEEDS)
        ended = [dict(run.curve) for run in runs if run.diverged is None]
        if ended:
            chart.lines.append(Line(OPTIMIZERS[name].title, pd.DataFrame(ended).mean(), name))
    if chart.lines:  # the first losses may be a hundred times the last ones
        losses = [line.values for line in chart.lines]
        chart.limits = min(each.min() for each in losses), max(each.iloc[len(each) // 4] for each in losses)
    return chart
