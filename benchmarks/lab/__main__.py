"""Run the claims lab, the paper's claims in longer runs, and write results/lab.

    python -m benchmarks.lab                     tables and figures from runs.jsonl
    python -m benchmarks.lab --plan              what is missing: runs, time, and the least effect to be seen
    python -m benchmarks.lab --run --jobs 2      the missing runs; can be stopped and repeated at any time
    python -m benchmarks.lab --run --upto 2048   only those of at most so many steps
    python -m benchmarks.lab --predict           what adan_optim.transfer says about Adan's learning rates
    python -m benchmarks.lab --again gpt adan    a cell's shortest run again: does it agree?

Every run that ends is appended to the records, and the next ones follow from these alone.

Examples:
    python -m benchmarks.lab --plan --jobs 2
    python -m benchmarks.lab --run --jobs 2 --upto 2048
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.lab.design import ALL_TASKS, OPTIMIZERS, RUNGS
from repro.ledger.rows import ROOT
from repro.train.cli import command_line

RECORDS = ROOT / "results" / "lab" / "runs.jsonl"


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__, prog="python -m benchmarks.lab")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="show what is missing, and what it costs")
    what.add_argument("--run", action="store_true", help="run what is missing")
    what.add_argument("--predict", action="store_true", help="append predictions that are missing")
    what.add_argument("--again", nargs=2, metavar=("TASK", "OPTIMIZER"), help="exit status 1 if it differs")
    for option, names in (("--tasks", list(ALL_TASKS)), ("--optimizers", list(OPTIMIZERS))):
        said = f"of {', '.join(names)}; default: all"
        parser.add_argument(option, nargs="+", choices=names, default=names, metavar="NAME", help=said)
    parser.add_argument(
        "--upto",
        type=int,
        choices=RUNGS,
        default=RUNGS[-1],
        metavar="STEPS",
        help=f"of the longest runs: {', '.join(map(str, RUNGS))}",
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
import tempfile
from functools import partial

from tqdm import tqdm

from benchmarks import sweep
from benchmarks.common import check
from benchmarks.comparison.design import REFERENCE, Task
from benchmarks.comparison.measures import estimate
from benchmarks.comparison.records import RECORDS as COMPARED
from benchmarks.comparison.records import Stage, load, where
from benchmarks.comparison.search import best
from benchmarks.lab import budget, page, predictions
from benchmarks.lab.design import LAB, SEEDS
from benchmarks.lab.measures import finals
from benchmarks.lab.todo import LabJob, octave_at, todo, tuned
from repro.environment import environment
from repro.errors import UserError
from repro.train.cli import exit_status
from repro.train.run_folder import refuse_foreign_page
from repro.train.transfer import predict

ADAN = {"name": "adan", "betas": (0.98, 0.92, 0.99)}  # as tuned


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command and return the exit status."""
    options = read_options(arguments)
    check(options, "jobs", "threads")
    options.launcher = []
    records, guesses = load(options.records), options.records.with_name("predictions.jsonl")
    if options.plan:
        found = budget.missing(records, options.tasks, options.optimizers, options.upto, not options.ladder)
        print(budget.describe(records, found, options.jobs))
        return 0
    if options.run:
        return run(options)
    if not records:
        raise UserError(f"{options.records}: no runs; make some with --run")
    if options.predict:
        return predict_all(options, guesses)
    if options.again:
        task, optimizer = options.again
        return again(task, optimizer, options)
    refuse_foreign_page(options.out / "README.md", "lab")
    names = page.write(records, load(COMPARED), predictions.load(guesses), options.out)
    print(f"{options.out}: {', '.join(names)}")
    return 0


def check_data(tasks: Sequence[Task], options: argparse.Namespace) -> None:
    """Raise UserError if one of the tasks needs data and there is no folder."""
    missing = [task for task in tasks if task.data and options.data is None]
    if missing:
        folder = missing[0].data
        raise UserError(f"{missing[0].title}: set --data or ADAN_DATA to the folder with {folder}/")


def run(options: argparse.Namespace) -> int:
    """Run what is missing; return 2 if a cell failed."""
    check_data([ALL_TASKS[task] for task in options.tasks], options)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    options.out = options.records
    jobs = partial(todo, longest=options.upto, asked=not options.ladder)
    return sweep.sweep(LAB.cells(options.tasks, options.optimizers), jobs, options)


def predict_all(options: argparse.Namespace, path: Path) -> int:
    """Append what adan_optim.transfer predicts for every task on which AdamW and Adan are tuned."""
    found = predictions.searches(load(options.records), load(COMPARED))
    wanted = predictions.missing(found, predictions.load(path))
    if options.data is None and (needs := [search for search, _ in wanted if search.job.about.data]):
        raise UserError(
            f"{needs[0].name}: set --data or ADAN_DATA to the folder with {needs[0].job.about.data}/"
        )
    for search, pilot in tqdm(wanted, unit="prediction", disable=None):
        job, about = search.job, search.job.about
        (octave,) = job.octaves
        given = {"lr": job.lr(octave), "weight_decay": job.weight_decay}
        words = [word for word in job.words if not word.startswith("optimizer")]
        words += ["optimizer=adan", *([f"data.root={options.data / about.data}"] if about.data else [])]
        length = min(pilot, search.steps)  # what is beyond the runs does not count
        guess = predict(about.script, words, REFERENCE, given, ADAN, length, predictions.SAMPLES)
        assert guess.closed_form is not None, "the noise was measured"
        predictions.append(
            path,
            predictions.Prediction(
                search.name, pilot, given["lr"], guess.factor, predictions.total(guess.noise),
                guess.closed_form, guess.settings.options["weight_decay"], where(environment()),
            ),
        )  # fmt: skip
    print(f"{path}: {len(wanted)} new")
    return 0


def again(task: str, optimizer: str, options: argparse.Namespace) -> int:
    """Run the first seed of a cell's shortest runs again; return 1 if it is outside of their interval.

    Raises:
        UserError: there is no such cell, or it has no result yet.
    """
    records = load(options.records)
    if task not in ALL_TASKS or optimizer not in OPTIMIZERS:
        known = f"tasks are {', '.join(ALL_TASKS)}; optimizers are {', '.join(OPTIMIZERS)}"
        raise UserError(f"--again {task} {optimizer}: {known}")
    check_data([ALL_TASKS[task]], options)
    steps = min(ALL_TASKS[task].lengths)
    losses, octave = finals(records, task, optimizer, steps), octave_at(records, task, optimizer, steps)
    if not losses or octave is None:
        raise UserError(f"--again {task} {optimizer}: has no result in {options.records}")
    decay, seed = best(tuned(records, task, optimizer)).weight_decay, SEEDS[0]
    job = LabJob(task, optimizer, Stage.SEEDS, decay, (octave,), (seed,), steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        options.runs = Path(folder)
        (now,) = sweep.run(job, options)
    interval = estimate(list(losses.values()))
    inside = now.final == losses[seed] or interval.low <= now.final <= interval.high
    print(
        f"{task}, {optimizer}, {steps} steps, seed {seed}: {now.final:.6g} now, {losses[seed]:.6g} then; "
        f"{len(losses)} seeds: {interval.format('.6g')}: {'agrees' if inside else 'DIFFERS'}"
    )
    return 0 if inside else 1


if __name__ == "__main__":
    sys.exit(main())
