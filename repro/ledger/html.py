"""The report: one HTML page that needs no network, from the ledger, the runs and what was measured."""

import hashlib
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from adan_optim.registry import CARDS
from repro.environment import commit
from repro.errors import UserError
from repro.ledger import charts, rows
from repro.ledger.curves import benches, charts_of_models, charts_of_rows, charts_of_runs, released
from repro.ledger.runs import finished
from repro.ledger.shown import STATES, TASKS, OwnRun, Shown, distance, own_run
from repro.runs import Run
from repro.train.run_folder import write_atomically

TEMPLATES = Path(__file__).parent / "templates"
MANY = 3  # rows with the same note, which is then written once
SEVERAL = 3  # a table whose rows have more figures than that has a column for each


@dataclass
class Table:
    """A table of the ledger: the rows of a folder of configs/paper."""

    name: str
    title: str
    rows: list[Shown]

    @property
    def source(self) -> str:
        """Where its rows were published."""
        return "; ".join(dict.fromkeys(shown.row.table for shown in self.rows))

    @property
    def parts(self) -> list[tuple[bool, list[Shown]]]:
        """The rows with a published number, then those without, each with whether it is the former."""
        halves = [(is_published, [r for r in self.rows if r.row.is_published == is_published])
                  for is_published in (True, False)]  # fmt: skip
        return [half for half in halves if half[1]]

    @property
    def metrics(self) -> list[tuple[str, str]]:
        """Name and unit of the figures that have a column each; empty if they share one."""
        most = max(self.rows, key=lambda shown: len(shown.figures)).figures
        return [(name, figure.unit) for name, figure in most] if len(most) > SEVERAL else []

    @property
    def has_logs(self) -> bool:
        """Whether a row has a value in a released log."""
        return any(shown.logged for shown in self.rows)

    @property
    def has_runs(self) -> bool:
        """Whether a row has a run of ours."""
        return any(shown.runs for shown in self.rows)

    @property
    def columns(self) -> int:
        """The number of columns."""
        return len(self.metrics) + 1 if self.metrics else 5 + 2 * self.has_logs + self.has_runs

    @cached_property
    def shared(self) -> list[tuple[list[Shown], list[str]]]:
        """The notes that many rows have, each list with the rows that it is about, the longest first."""
        about = defaultdict[str, list[Shown]](list)
        for shown in self.rows:
            for note in shown.notes:
                about[note].append(shown)
        groups = defaultdict[tuple[str, ...], list[str]](list)
        for note, group in about.items():
            groups[tuple(shown.row.name for shown in group)].append(note)
        by_name = {shown.row.name: shown for shown in self.rows}
        many = sorted((names for names in groups if len(names) >= MANY), key=len, reverse=True)
        return [([by_name[name] for name in names], groups[names]) for names in many]

    def notes(self, shown: Shown) -> list[str]:
        """Return the notes of a row that are not in `shared`."""
        others = {note for _, notes in self.shared for note in notes}
        return [note for note in shown.notes if note not in others]


def write(out: Path, runs: Sequence[Path], comparison: Mapping[str, Any] | None = None) -> str:
    """Write the page to `out`; return a line on its contents and one for each run that was left out.

    Args:
        runs: folders that are searched for our own runs.
        comparison: of optimizers, see `benchmarks.comparison.report.section`.
    """
    found, left_out = finished(runs)
    own, damaged = own_runs(found)
    left_out += damaged
    shown = load(own)
    curves = released(shown)
    text = page().get_template("page.html").render(
        made=f"{time.strftime('%Y-%m-%d')}, commit {(commit() or 'unknown')[:10]}, "
        f"python {' '.join(sys.argv)}",
        findings=findings(shown),
        tables=tables(shown),
        filters=filters(shown),
        curves=charts_of_models(curves),
        charts_of_rows=charts_of_rows(curves),
        charts_of_runs=charts_of_runs,
        others=[run for run in own if run.run.row not in rows.names()],
        left_out=left_out,
        benches=list(benches()),
        comparison=comparison,
    )  # fmt: skip
    write_atomically(out, text)
    drawn = sum(curve.log is not None for curve in curves)
    made = (
        f"{out}: {len(shown)} rows, {drawn} released curves, {len(own)} own runs, {len(text) / 1000:.0f} kB"
    )
    return "\n".join([made, *(f"left out: {line}" for line in left_out)])


def page() -> jinja2.Environment:
    """Return the templates, with the names that they use."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    titles = {name: card.title for name, card in CARDS.items()}
    found.globals |= {
        "charts": charts, "include": lambda name: (TEMPLATES / name).read_text(),
        "title_of": lambda name: titles.get(name, name),
    }  # fmt: skip
    return found


def digest() -> str:
    """Return a hash of what determines how the page looks, its contents aside."""
    files = [*sorted(TEMPLATES.iterdir()), Path(charts.__file__)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def own_runs(found: Sequence[Run]) -> tuple[list[OwnRun], list[str]]:
    """Return finished runs as the page shows them, and a line for each that cannot be shown."""
    shown, left_out = [], []
    for run in found:
        try:
            shown.append(own_run(run))
        except UserError as error:
            left_out.append(str(error))
    return shown, left_out


def load(own: Sequence[OwnRun] = ()) -> list[Shown]:
    """Return all rows of the ledger, by table, with our own runs of each."""
    return [
        Shown(
            rows.load(name),
            found["verdict"],
            found["checks"],
            [run for run in own if run.run.row == name],
        )
        for name, found in rows.verified().items()
    ]


def findings(shown: Sequence[Shown]) -> list[str]:
    """Return what the ledger and the runs say, in three sentences."""
    published = sum(each.row.is_published for each in shown)
    states = Counter(each.state[0] for each in shown)
    released = states["agrees"] + states["differs"] + states["absent"]
    logged = [each.shows for each in shown if each.shows]
    same = sum(found not in ("neither", "unknown") for found in logged)
    own = [each for each in shown if each.runs]
    whole = [each for each in own if any(run.run.scale == "paper" for run in each.runs)]
    distances = [found for each in whole if (found := distance(each)) is not None]
    ran = f"{_rows(len(own))} {'has' if len(own) == 1 else 'have'} runs of our own"
    if whole:
        ran += f", {len(whole)} of them at the published scale"
        if distances:
            ran += f", which end within {max(distances):.1%} of what was published"
    elif own:
        ran += ", all of them small proxies: none has been run at the published scale yet"
    differ = f"{states['differs'] or 'none'} {'differ' if states['differs'] > 1 else 'differs'}"
    return [
        f"The ledger has {_rows(len(shown))}: {published} with a published number, "
        f"{len(shown) - published} without one.",
        f"Files were released with {_rows(released)}: our configurations of {states['agrees']} agree with "
        f"all that these files fix, {differ}, and the files of {states['absent']} are not on this machine; "
        f"of {len(logged)} published numbers with a log, {same} are its best or final value, rounded.",
        f"{ran}.",
    ]


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def counts() -> dict[str, int | str]:
    """Return the numbers of the first two findings, and the hash of the page's looks."""
    shown = load()
    states = Counter(each.state[0] for each in shown)
    return {"published": sum(each.row.is_published for each in shown), **states, "looks": digest()}


def filters(shown: Sequence[Shown]) -> dict[str, list[tuple[str, str]]]:
    """Return the choices of each filter: value and words."""
    optimizers = dict.fromkeys(each.optimizer for each in shown if each.optimizer)
    statuses = {status for each in shown for status in each.statuses}
    every = {
        "published": "a number was published",
        "unpublished": "no number was published",
        **{key: words for key, words, _ in STATES.values()},
        "own": "with our own runs",
        "waiting": "cannot be run yet",
    }
    return {
        "task": [(each.name, each.title) for each in tables(shown)],
        "optimizer": sorted((name, CARDS[name].title if name in CARDS else name) for name in optimizers),
        "status": [(key, label) for key, label in every.items() if key in statuses],
    }


def tables(shown: Sequence[Shown]) -> list[Table]:
    """Return the rows by table, in the order of TASKS."""
    names = dict.fromkeys([*TASKS, *(each.table for each in shown)])
    found = [Table(name, TASKS.get(name, name), [r for r in shown if r.table == name]) for name in names]
    return [table for table in found if table.rows]
