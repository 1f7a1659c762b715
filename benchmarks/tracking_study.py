"""Measure how well live tracking works.

For every row of the ledger whose released log is on this machine: how often does the rule
(repro/ledger/verdict.py) call a good run behind or diverged, and how soon does it notice a bad one?

Good runs are the released logs themselves, sibling logs while their settings agree, and reruns with other
random noise. Bad runs are reruns with a fault (both are in benchmarks/tracking_faults.py), and released
curves of another recipe for the same model. `behind` and `diverged` count as alarms. The first alarm at or
after the start of a fault is its detection.

Examples:
    python benchmarks/tracking_study.py
    python benchmarks/tracking_study.py --seeds 3 --out runs
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from repro.train.cli import command_line


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write README.md, tracking.json and the figure there"
    )
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="reruns of each row (default: 20)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import itertools
import statistics
import sys
import time
from typing import Any
from unittest import mock

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.tracking_faults import FAULTS, Case, rerun
from repro.environment import commit
from repro.errors import UserError
from repro.ledger import tracking, verdict
from repro.ledger.rows import load, names
from repro.logs.files import read_log
from repro.logs.log import LogError
from repro.plots import INK, STYLE, caption, finish, looks, panels, rc_context, save
from repro.results import page, publish, table
from repro.train.cli import exit_status
from repro.train.run_folder import refuse_foreign_page

FIGURE = "delays"  # its name without a suffix
# window, reach, tolerance, records
CONSTANTS = [(0.1, 0.02, *pair) for pair in itertools.product((0.005, 0.01, 0.015, 0.02), (1, 2, 3, 4))]
CONSTANTS += [(*pair, 0.015, 3) for pair in ((0, 0), (0.05, 0.02), (0.2, 0.02), (0.1, 0.01), (0.1, 0.05))]


def cases() -> tuple[list[Case], list[str]]:
    """Return the rows whose log is here, and the files that are missing."""
    found, missing = [], []
    for name in names():
        row = load(name).row
        if not row.logs:
            continue
        try:
            log = read_log(row)
            found.append(Case(row, log, tracking.curves(row, log)))
        except LogError as error:
            missing.append(str(error).partition(" is not in ")[0])
    return found, missing


def sibling_spread(found: Sequence[Case]) -> tuple[float, list[dict[str, Any]]]:
    """Return the spread (root mean square) of siblings' mean relative differences, and how siblings fare."""
    by_name = {case.row.name: case for case in found}
    means, results = [], []
    for case in found:
        for sibling in case.row.siblings:
            other = by_name.get(sibling.row)
            if other is None:
                continue
            until = sibling.until + tracking.shift(other.log)
            differing, runs = [0], {}
            for key, curve in case.curves.items():
                rival = next(c for c in other.curves.values() if c.column == curve.column)
                runs[key] = rival.errors[: np.searchsorted(rival.positions, until, side="right")]
                ratios = np.log(runs[key] / curve.errors[: len(runs[key])])
                # the first records show the initial weights; equal ones belong to the same run
                differences = [ratio for ratio in ratios[3:] if ratio != 0]
                differing.append(len(differences))
                if len(differences) >= tracking.ENOUGH:
                    means.append(float(np.mean(differences)))
            verdicts, strict = (
                [verdict for position, verdict in each.verdicts(runs) if position <= until]
                for each in (case, case.with_tolerance(0.0))
            )
            results.append(
                {
                    "row": case.row.name,
                    "as": other.row.name,
                    "positions": len(verdicts),
                    "that differ": max(differing),
                    "alarms": sum(verdict > 0 for verdict in verdicts),
                    "with tolerance 0": sum(verdict > 0 for verdict in strict),
                    "ahead": sum(verdict < 0 for verdict in verdicts),
                    "tolerance, %": "/".join(f"{100 * c.tolerance:.2g}" for c in case.curves.values()),
                }
            )
    return (float(np.sqrt(np.mean(np.square(means)))) if means else 0.006), results


def alarms_of_reruns(found: Sequence[Case], seeds: int, spread: float) -> list[dict[str, Any]]:
    """Return, per table, how many reruns are ever called behind or diverged, and for how long."""
    rows = []
    for name, group in _by_table(found):
        random = np.random.default_rng(0)
        runs = [list(case.verdicts(rerun(case, random, spread))) for case in group for _ in range(seeds)]
        wrong = [sum(verdict > 0 for _, verdict in run) / len(run) for run in runs]
        rows.append(
            {
                "table": name,
                "rows": len(group),
                "reruns": len(runs),
                "ever called behind or diverged, %": 100 * statistics.fmean(share > 0 for share in wrong),
                "of all verdicts, %": 100 * statistics.fmean(wrong),
                "ever called ahead, %": 100 * statistics.fmean(any(v < 0 for _, v in run) for run in runs),
            }
        )
    return rows


def detection(found: Sequence[Case], seeds: int, spread: float) -> list[dict[str, Any]]:
    """Return, per table, how soon each fault is noticed."""
    rows = []
    for (name, group), fault in itertools.product(_by_table(found), FAULTS):
        random = np.random.default_rng(1)
        delays, shares, runs = [], [], 0
        for case in group:
            for _ in range(seeds if fault.concerns(case) else 0):
                begin = fault.since * case.length
                position = case.alarm(fault.disturb(case, rerun(case, random, spread)), begin, fault.least)
                runs += 1
                if position is not None:
                    delays.append(position - begin)
                    shares.append((position - begin) / case.length)
        if runs:
            rows.append(
                {
                    "table": name,
                    "fault": fault.name,
                    "runs": runs,
                    "noticed, %": 100 * len(delays) / runs,
                    "median delay": statistics.median(delays) if delays else None,
                    "worst delay": max(delays, default=None),
                    "median, % of the run": 100 * statistics.median(shares) if shares else None,
                }
            )
    return rows


def other_recipes(found: Sequence[Case]) -> list[dict[str, Any]]:
    """Return when the released curve of another recipe for the same model is first called what."""
    rows = []
    for case, other in itertools.permutations(found, 2):
        if case.row.model == other.row.model and _table_of(case) == _table_of(other):
            frame = tracking.compare_log(case.row, other.log)
            first = {
                word: frame["position"][frame["verdict"] == word].min()
                for word in ("behind", "diverged", "ahead")
            }
            rows.append(
                {
                    "row": case.row.name,
                    "run": other.row.name,
                    **{f"{word} at": None if np.isnan(at) else at for word, at in first.items()},
                    "in the end": tracking.verdict(frame),
                }
            )
    return rows


def choices(found: Sequence[Case], seeds: int, spread: float) -> list[dict[str, Any]]:
    """Return false alarms and delays with other constants than those in repro/ledger/verdict.py.

    Only rows that log epochs count.
    """
    faults = [fault for fault in FAULTS if fault.name in ("20 % slower", "accuracy 1 points lower")]
    rows = []
    for window, reach, tolerance, records in CONSTANTS:
        with mock.patch.multiple(verdict, WINDOW=window, REACH=reach, RECORDS=records):
            group = [case.with_tolerance(tolerance) for case in found if case.log.position == "epoch"]
            random = np.random.default_rng(2)
            wrong = [case.alarm(rerun(case, random, spread)) for case in group for _ in range(seeds)]
            row: dict[str, float | None] = {
                "window, %": 100 * window,
                "reach, %": 100 * reach,
                "tolerance, %": 100 * tolerance,
                "records": records,
                "reruns called behind, %": 100 * statistics.fmean(position is not None for position in wrong),
            }
            for fault in faults:
                late = [
                    case.alarm(fault.disturb(case, rerun(case, random, spread)))
                    for case in group
                    if fault.concerns(case)
                    for _ in range(max(1, seeds // 4))
                ]
                seen = [position for position in late if position is not None]
                row[f"{fault.name}: median epoch"] = statistics.median(seen) if seen else None
                row[f"{fault.name}: missed, %"] = 100 * (1 - len(seen) / len(late))
            rows.append(row)
    return rows


def _by_table(found: Sequence[Case]) -> list[tuple[str, list[Case]]]:
    return [(key, list(group)) for key, group in itertools.groupby(found, _table_of)]


def _table_of(case: Case) -> str:
    return case.row.name.partition("/")[0]


def study(seeds: int) -> dict[str, Any]:
    """Return all tables of the study.

    Raises:
        UserError: no released log is here.
    """
    found, missing = cases()
    if not found:
        raise UserError(f"no released log is here; the first: {missing[0]}")
    spread, siblings = sibling_spread(found)
    themselves = {case.row.name: tracking.compare_log(case.row, case.log)["verdict"] for case in found}
    return {
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "rows": [case.row.name for case in found],
        "missing": missing,
        "spread": spread,
        "themselves": {
            "records": sum(len(verdicts) for verdicts in themselves.values()),
            "not on track": sum(int((verdicts != "on track").sum()) for verdicts in themselves.values()),
        },
        "siblings": siblings,
        "reruns": alarms_of_reruns(found, seeds, spread),
        "detection": detection(found, max(1, seeds // 4), spread),
        "recipes": other_recipes(found),
        "choices": choices(found, seeds, spread),
    }


@rc_context(STYLE)
def delays(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw how soon each fault is noticed; `rows` as `detection` returns them."""
    faults = [*dict.fromkeys(row["fault"] for row in rows)]
    tables = [*dict.fromkeys(row["table"] for row in rows)]
    drawn = looks(dict.fromkeys(tables))
    figure, [axes] = panels(1, height=0.26 * len(faults) + 0.8)
    for name, shift in zip(tables, np.linspace(-0.25, 0.25, len(tables)), strict=True):
        colour, marker = drawn[name].colour, drawn[name].marker
        for row in rows:
            if row["table"] == name and (share := row["median, % of the run"]) is not None:
                axes.plot(
                    share, faults.index(row["fault"]) + shift, marker, color=colour,
                    mfc=colour if row["noticed, %"] == 100 else "none",
                )  # fmt: skip
        axes.plot([], [], marker, color=colour, label=name)
    axes.plot([], [], "o", color=INK, mfc="none", label="not in all runs")
    axes.set_yticks(range(len(faults)), faults)
    axes.set(ylim=(len(faults) - 0.4, -0.6), xlabel="median delay, % of the run\nleft is better")
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xlim(-0.03, 130)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    never = [f"{row['fault']} ({row['table']})" for row in rows if not row["noticed, %"]]
    always = [row["median, % of the run"] for row in rows if row["noticed, %"] == 100]
    within = f", after at most {max(always):.0f} % of it in the median" if always else ""
    finish(
        figure, f"{len(always)} of {len(rows)} faults are noticed in every run{within}",
        "From the beginning of the fault, in simulated reruns of released logs; a fault counts once for each "
        "table of the ledger." + (f" Never noticed: {', '.join(never)}." if never else ""),
    )  # fmt: skip
    return figure


def markdown(results: dict[str, Any], seeds: int) -> str:
    """Return the README of the results."""
    themselves = results["themselves"]
    return page(
        "How well live tracking does",
        f"`python benchmarks/tracking_study.py --out results/tracking --seeds {seeds}` at commit "
        f"{results['commit']}, {results['date']}; seeds 0, 1, 2 of numpy. The rule is stated in "
        "repro/ledger/verdict.py and docs/tracking.md; reruns and faults are described at the head of "
        f"the script. {len(results['rows'])} rows; their logs are all released ones that are here. "
        f"Missing: {'; '.join(results['missing']) or 'none'}.",
        "## Good runs",
        f"Every released log against itself: {themselves['records']} records, "
        f"{themselves['not on track']} not on track.",
        "Sibling logs, while their settings agree. `tolerance` is of each column and measured by them; "
        "`with tolerance 0` are the alarms if it were not.",
        _table(results["siblings"]),
        f"Reruns, with a spread of {100 * results['spread']:.2f} % of the error, as siblings' means:",
        _table(results["reruns"]),
        "## Bad runs",
        f"![{caption(delays(results['detection']))}]({FIGURE}.png)",
        "Delays are in epochs, for bert and wikitext103 in steps, from the beginning of the fault:",
        _table(results["detection"]),
        "The released curve of another recipe of the same model, taken for a run of this row, and where "
        "it is first called what:",
        _table(results["recipes"]),
        "## Other constants",
        "All rows that log epochs, with one tolerance for all. repro/ledger/verdict.py has "
        f"{100 * verdict.WINDOW:g} %, {100 * verdict.REACH:g} %, {100 * verdict.TOLERANCE:g} % and "
        f"{verdict.RECORDS} records: of those that call fewer than one good run in a hundred behind, "
        "the ones that notice a bad one soonest.",
        _table(results["choices"]),
    )


def _table(rows: list[dict[str, Any]]) -> str:
    return table(list(rows[0]), (map(_cell, row.values()) for row in rows))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "none" if value is None else str(value)


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study, print its tables, write them, and return the exit status."""
    options = read_options(arguments)
    if options.out is not None:
        refuse_foreign_page(options.out / "README.md", "tracking_study.py")
    results = study(options.seeds)
    text = markdown(results, options.seeds)
    publish(results, text, options.out and options.out / "tracking", "README.md")
    if options.out is not None:
        save(delays(results["detection"]), options.out / FIGURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
