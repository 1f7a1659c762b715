"""Rerun a published result, or list the results that can be rerun.

    python scripts/reproduce.py --list [PATTERN]                     every row: published, cost, own result
    python scripts/reproduce.py ROW [--scale proxy] [key=value ...]  run one; the same command continues it
    python scripts/reproduce.py ROW --dry-run [key=value ...]        describe the run, start nothing
    python scripts/reproduce.py ROW --track FILE...                  compare any training log with a row

ROW is <table>/<name>, as in --list. The words after it go to the recipe: key=value, or, after `--`, any
argument of the recipe's own command line. For several processes: --processes N, or start this under torchrun.

Examples:
    python scripts/reproduce.py --list imagenet
    python scripts/reproduce.py imagenet/vit_s_150_i --scale proxy
"""

import argparse
import logging
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from adan_optim.text import aligned, without_empty
from repro import hardware
from repro.errors import UserError
from repro.ledger import describe, rows, runs
from repro.ledger.rows import ROOT, Recipe
from repro.logs import read
from repro.train.cli import command_line, exit_status

if TYPE_CHECKING:
    import pandas as pd

RUNS = (Path("runs"), ROOT / "results")  # folders with own results
SHOWN = 40  # lines of a comparison
GPU = "H100"  # of hardware.PEAK
TIME = f"one {GPU}"  # column of the list


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: the recipe's, or 2 if it was not started."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    split = words.index("--") if "--" in words else len(words)
    options = parser().parse_intermixed_args(words[:split])
    if options.list is not None:
        print(table(options.list))
        return 0
    if options.row is None:
        raise UserError("name a row, as in `python scripts/reproduce.py ROW`, or --list them")
    recipe, command = prepare(options.row, options.scale, options.overrides)
    command += words[split + 1 :]
    if options.track:
        compare(recipe, options.track)
    elif options.dry_run:
        print(describe.describe(recipe, shown(command, options.processes)))
    else:
        return start(recipe, command, options.processes)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command_line(__doc__)
    parser.add_argument("row", nargs="?", metavar="ROW")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    parser.add_argument(
        "--list", nargs="?", const="", metavar="PATTERN", help="list the rows with PATTERN in their name"
    )
    parser.add_argument(
        "--scale", choices=["paper", "proxy"], default="paper",
        help="paper: as published (default); proxy: the same with a small model on small data, for CPUs",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, metavar="N", help="processes on this machine, one per GPU")
    parser.add_argument("--dry-run", action="store_true", help="show configuration, command, data and cost")
    parser.add_argument(
        "--track", nargs="+", type=Path, metavar="FILE", help="a log to compare; several are parts of one run"
    )
    return parser


def prepare(name: str, scale: str, overrides: Sequence[str]) -> tuple[Recipe, list[str]]:
    """Return a row with its configuration at a scale, and the command that runs it.

    Raises:
        UserError: there is no such row, it has no proxy, or an override does not fit.
    """
    recipe = rows.load(name)
    row = recipe.row
    overrides = list(overrides)
    if scale == "proxy":
        if row.proxy is None:
            raise UserError(f"{name} has no proxy: leave out --scale proxy")
        overrides.insert(0, f"+proxy={row.proxy}")
    if row.config is None:  # not a Hydra recipe: it has its own command line
        return recipe, [row.script, *row.arguments, *overrides]
    recipe = rows.load(name, overrides)
    given = {word.partition("=")[0] for word in overrides}
    swept = {key: values for key, values in recipe.row.sweep.items() if key not in given}
    several = ["-m"] if any(len(values) > 1 for values in swept.values()) else []
    runs = [f"{key}={','.join(map(quoted, values))}" for key, values in swept.items()]
    return recipe, [row.script, *several, f"+paper={name}", *overrides, *runs]


def quoted(value: str) -> str:
    """Return a text as a value in Hydra's grammar."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def shown(command: Sequence[str], processes: int | None) -> str:
    """Return a command as one would type it."""
    launcher = ["python"] if processes is None else ["torchrun", f"--nproc-per-node={processes}"]
    return shlex.join([*launcher, *command])


def start(recipe: Recipe, command: Sequence[str], processes: int | None) -> int:
    """Become the recipe, or launch several processes of it and return their exit status.

    Raises:
        UserError: the row is not runnable.
    """
    row = recipe.row
    if row.status != "runnable":
        runnable = (name for name in rows.names() if rows.load(name).row.status == "runnable")
        tables = Counter(name.split("/")[0] for name in runnable)
        now = ", ".join(f"{table} ({counted(count)})" for table, count in tables.items())
        raise UserError(f"{row.name} is {row.status}. Runnable now: {now}")
    if processes is not None and processes < 1:
        raise UserError(f"--processes {processes}: must be at least 1")
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # under torchrun, only one process prints
        print(shown(command, processes), flush=True)
    words = [os.path.relpath(ROOT / command[0]), *command[1:]]
    if processes is None:
        os.execv(sys.executable, [sys.executable, *words])
    return launch(words, processes)


def counted(count: int) -> str:
    """Return a number of rows as text."""
    return f"{count} row{'s'[: count > 1]}"


def launch(words: list[str], processes: int) -> int:
    """Run a script in several processes on this machine; return the exit status of the first that failed."""
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")  # seconds for a checkpoint after SIGTERM
    logging.disable(logging.CRITICAL)  # torchrun's reports would hide the recipe's
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun([f"--nproc-per-node={processes}", "--standalone", *words])
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    except SignalException as error:
        return 128 + error.sigval
    except KeyboardInterrupt:
        return 130
    return 0


def compare(recipe: Recipe, files: Sequence[Path]) -> None:
    """Print the comparison of a log with the row's released curve, and the verdict."""
    from repro.ledger.tracking import compare_log, verdict

    log = read(files)
    frame = compare_log(recipe.row, log)
    for remark in frame.attrs["left_out"]:
        print(remark)
    print(thinned(frame).to_string(index=False, float_format="{:.5g}".format))
    if len(frame) > SHOWN:
        print(f"({len(frame):,} lines; shown are some of them, and all where a verdict changes)")
    print(f"{recipe.row.name}: {verdict(frame)}")


def thinned(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return evenly spaced lines of a comparison, and those where a verdict changes."""
    if len(frame) <= SHOWN:
        return frame
    import numpy as np

    before = frame.groupby("column")["verdict"].shift()
    keep = set(np.flatnonzero(before.notna() & (frame["verdict"] != before)))
    keep |= set(np.linspace(0, len(frame) - 1, SHOWN).round().astype(int))
    return frame.iloc[sorted(keep)]


def table(pattern: str) -> str:
    """Return a table of the rows with `pattern` in their name, and why some of them are not runnable.

    Raises:
        UserError: there are none.
    """
    names = [name for name in rows.names() if pattern in name]
    if not names:
        raise UserError(f"--list {pattern}: no row has that in its name; leave it out to see all")
    finished = runs.of_rows(RUNS)
    cells, reasons = [["row", "model", "published", "status", TIME, "own result"]], Counter[str]()
    for name in tqdm(names, unit="row", leave=False, disable=None):  # Hydra takes 0.2 s for each
        recipe = rows.load(name)
        row = recipe.row
        status, _, why = row.status.partition(": ")
        if why:
            reasons[row.status] += 1
        last = runs.last(finished, name)
        cells.append(
            [
                name,
                row.model,
                describe.headline(row),
                status if why else "-",
                "-" if row.cost is None else hardware.show_time(hardware.gpu_hours(row.cost, GPU)),
                "-" if last is None else runs.describe(last, recipe),
            ]
        )
    cells = without_empty(cells)
    notes = [f"{status} ({counted(count)})" for status, count in reasons.items()]
    if TIME in cells[0]:
        times = hardware.PEAK[GPU] / hardware.PEAK["A100"]
        notes.append(
            f"{TIME}: the estimated time; an A100 takes {times:.2g} times as long (docs/reproduce.md)"
        )
    return "\n".join([*aligned(cells, right=[TIME], rule=True), "", *notes]).rstrip()


if __name__ == "__main__":
    sys.exit(main())
