"""The claims lab: `python -m benchmarks.lab` writes results/lab from its runs.

    python -m benchmarks.lab                     tables and figures from runs.jsonl
    python -m benchmarks.lab --plan              what is missing: runs, hours, and the least effect to be seen
    python -m benchmarks.lab --run --jobs 2      the missing runs; can be stopped and repeated at any time
    python -m benchmarks.lab --run --upto 2048   only those of at most so many steps
    python -m benchmarks.lab --again gpt adan    a cell's shortest runs again: do they agree?

Every run that ends is appended to the records, and the next ones follow from these alone.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.lab.design import ALL_TASKS, OPTIMIZERS, RUNGS
from repro.ledger.rows import ROOT
from repro.train.cli import command_line

COMMAND = "python -m benchmarks.lab"
RECORDS = ROOT / "results" / "lab" / "runs.jsonl"


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__, prog=COMMAND)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="show what is missing, and what it costs")
    what.add_argument("--run", action="store_true", help="run what is missing")
    what.add_argument("--again", nargs=2, metavar=("TASK", "OPTIMIZER"), help="exit status 1 if it differs")
    parser.add_argument("--tasks", nargs="+", choices=list(ALL_TASKS), default=list(ALL_TASKS))
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=list(OPTIMIZERS))
    parser.add_argument(
        "--upto", type=int, choices=RUNGS, default=RUNGS[-1], help="steps of the longest runs"
    )
    parser.add_argument("--ladder", action="store_true", help="run no experiments")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default 1)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each run (default 1)")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("ADAN_DATA"), metavar="PATH",
        help="the folder with fashion-mnist/; default: the one that ADAN_DATA names",
    )  # fmt: skip
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="JSONL")
    parser.add_argument("--out", type=Path, default=RECORDS.parent, metavar="FOLDER", help="of the tables")
    parser.add_argument("--runs", type=Path, default=Path("runs/lab"), metavar="FOLDER")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import sys
from functools import partial

from benchmarks import sweep
from benchmarks.common import check
from benchmarks.lab.todo import cells, todo
from repro.errors import UserError
from repro.train.cli import exit_status


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command and return the exit status."""
    options = read_options(arguments)
    check(options, "jobs", "threads")
    options.launcher = []
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Run what is missing; return 2 if a cell failed."""
    missing = [task for task in options.tasks if ALL_TASKS[task].data and options.data is None]
    if missing:
        raise UserError(
            f"{missing[0]}: set --data or ADAN_DATA to the folder with {ALL_TASKS[missing[0]].data}/"
        )
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    options.out = options.records
    return sweep.sweep(
        cells(options.tasks, options.optimizers),
        partial(todo, longest=options.upto, asked=not options.ladder),
        options,
    )


if __name__ == "__main__":
    sys.exit(main())
