"""Show logs as text, as a figure, or as a file of the common table."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from adan_optim.text import aligned
from repro.direction import better, higher_is_better
from repro.errors import UserError
from repro.logs import FORMATS, epochs_from
from repro.logs.log import POSITION, UNKNOWN, Log
from repro.publish import replacing
from repro.reading import printable

SHOWN = 5  # faults or oddities
LOG_FROM = 20  # a loss that falls by more than this factor gets a logarithmic axis


def columns(log: Log) -> list[str]:
    """Return the columns with measured numbers, in the order of the table."""
    return [
        name for name in log.table if name not in POSITION and pd.api.types.is_numeric_dtype(log.table[name])
    ]


def describe(log: Log, everything: bool = False) -> str:
    """Return the text of `logs.py show`; with `everything`, all faults and oddities."""
    format, table, position = FORMATS[log.format], log.table, log.position
    kinds = ", ".join(f"{count} {kind}" for kind, count in table["record"].value_counts(sort=False).items())
    first, last = table[position].min(), table[position].max()
    known = position == "epoch" and format.epochs_from is not None
    started = f" (the first epoch is {format.epochs_from})" if known else ""
    text = [
        *(str(path) for path in log.paths),
        f"format    {format.title}",
        f"records   {len(table)}: {kinds}",
        "lines     " + ", ".join(f"{log.lines[key]} {key}" for key in ("record", "other", "fault")),
        f"position  {position} {first:.10g} to {last:.10g}{started}",
        f"resumes   {log.resumes}",
        f"repeated  {log.repeated} replaced by later records",
        f"settings  {len(log.config)} in the log" if log.config else "settings  none in the log",
    ]
    kinds_of_events = Counter(event["what"] for event in log.events)
    listed = ", ".join(f"{count} {what}" for what, count in kinds_of_events.most_common())
    text += [f"events    {listed or 'none'}", "", _values(log), ""]
    for name, remarks in (("faults", log.faults), ("oddities", log.oddities)):
        shown = remarks if everything else remarks[:SHOWN]
        text += [f"{name:8}  {len(remarks)}", *(f"  {remark}" for remark in shown)]
        if len(shown) < len(remarks):
            text.append(f"  and {len(remarks) - len(shown)} more (--all shows them)")
    return "\n".join(text)


def _values(log: Log) -> str:
    """Return a table with a line for each column: first, last and best value with their positions, unit."""
    table = [["column", "values", "first", "last", "best", "unit"]]
    for name in columns(log):
        rows = _curve(log, name, log.position)
        series = pd.Series(rows[name].to_numpy(), rows[log.position].to_numpy())
        higher = higher_is_better(name)
        sign = 1 if higher else -1
        known = higher is not None and len(series)
        best = _at(series, int((sign * series).to_numpy().argmax())) if known else "-"
        shown = [_at(series, 0), _at(series, -1), best]
        table.append([printable(name), str(len(series)), *shown, log.units.get(name, "-")])
    return "\n".join(aligned(table))


def _at(series: pd.Series, index: int) -> str:
    return f"{series.iloc[index]:.5g} @{series.index[index]:.10g}" if len(series) else "-"


def plot(logs: dict[str, Log], out: Path, only: Sequence[str] = ()) -> list[str]:
    """Write a figure with a panel per column and a line per log, and return the columns.

    The x axis is the step if all logs have it, else the number of finished epochs.

    Args:
        only: the columns; default: losses, perplexities, metrics and the learning rate, if they have at least
            two values.

    Raises:
        UserError: no log has such a column, the logs have no position in common, or OUT cannot be written.
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    from repro.plots import MOST, STYLE, finish, looks, panels, quantity, rc_context, save

    names = _drawn(logs, only)
    over = "step" if all(log.position == "step" for log in logs.values()) else "epoch"
    for label, log in logs.items():
        if over not in log.table:
            raise UserError(f"{label} has no {over}, the position of another of these logs; plot them apart")
    drawn = looks(dict.fromkeys(logs))
    with rc_context(STYLE):
        figure, axes = panels(len(names))
        for axis, name in zip(axes, names, strict=True):
            for label, log in logs.items():
                rows, look = _curve(log, name, over), drawn[label]
                done = 1 - epochs_from(log) if over == "epoch" else 0
                style = look.points if len(rows) < 30 else look.line
                axis.plot(rows[over] + done, rows[name], **style, label=look.label(label))
            units = {log.units[name] for log in logs.values() if name in log.units} - {"1", UNKNOWN}
            axis.set(
                xlabel="step" if over == "step" else "epochs done", title=_best(logs, name, over),
                ylabel=quantity(name.replace("_", " "), "; ".join(sorted(units)), better(name)),
            )  # fmt: skip
            values = [y for log in logs.values() for y in _curve(log, name, over)[name] if math.isfinite(y)]
            if higher_is_better(name) is False and values and 0 < LOG_FROM * min(values) < max(values):
                axis.set_yscale("log")
            axis.xaxis.set_major_locator(MaxNLocator(6))
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k
        note = f"In grey: the last {len(logs) - MOST} logs of {len(logs)}." if len(logs) > MOST else ""
        finish(figure, "Which log is best?" if len(logs) > 1 else next(iter(logs)), note)
    save(figure, out)
    return names


def _best(logs: dict[str, Log], name: str, over: str) -> str:
    """Return the best value of a column in words, and which of several logs has it; "" if none is better."""
    higher = higher_is_better(name)
    if higher is None:
        return ""
    sign = 1 if higher else -1
    values = {label: sign * _curve(log, name, over)[name] for label, log in logs.items()}
    most = {label: x.max() for label, x in values.items() if len(x) and math.isfinite(x.max())}
    if not most:
        return ""
    label = max(most, key=most.__getitem__)
    end = label if len(label) <= 28 else f"...{label[-25:]}"
    return f"best: {sign * most[label]:.4g}" + (f"\n{end}" if len(logs) > 1 else "")


def _drawn(logs: dict[str, Log], only: Sequence[str]) -> list[str]:
    """Return the columns that `plot` draws.

    Raises:
        UserError: there are none.
    """
    counts = Counter[str]()
    for log in logs.values():
        for name in columns(log):
            counts[name] = max(counts[name], log.table[name].count())
    known = ", ".join(counts)
    if missing := [name for name in only if name not in counts]:
        raise UserError(f"--column={missing[0]}: no log has it; there are {known}")
    several = [name for name, count in counts.items() if count > 1]
    names = list(only) or [n for n in several if higher_is_better(n) is not None or n == "lr"]
    if not names:
        raise UserError(f"no loss or metric with two values or more; choose with --column among {known}")
    return names


def _curve(log: Log, name: str, over: str) -> pd.DataFrame:
    """Return the rows of a column's curve: training records, or the others if more of those have it.

    A log may have a loss twice, as a mean over some steps and over an epoch; a curve shows one of them.
    """
    if name not in log.table:
        return pd.DataFrame({over: [], name: []})
    rows = log.table.dropna(subset=[name, over])
    training = rows["record"] == "train"
    return rows[training] if 2 * training.sum() > len(rows) else rows[~training]


def export(log: Log, out: Path) -> None:
    """Write the common table as .csv or .parquet, with units, format and paths in the schema of Parquet.

    Raises:
        UserError: the suffix is another one, or the file cannot be written.
    """
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out={out}: the table can be written as .csv or .parquet")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            log.table.to_csv(temporary, index=False) if out.suffix == ".csv" else _parquet(log, temporary)
    except OSError as error:
        raise UserError(f"--out={out}: cannot write the table: {error}") from error


def _parquet(log: Log, path: Path) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    table = pa.Table.from_pandas(log.table, preserve_index=False)
    about = {"format": log.format, "paths": [str(path) for path in log.paths], "units": log.units}
    kept = {key: json.dumps(value) for key, value in about.items()}
    parquet.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **kept}), path)
