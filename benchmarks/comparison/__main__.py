"""Make the tables and figures of the comparison from its runs.

    python -m benchmarks.comparison                     write results/comparison from runs.jsonl
    python -m benchmarks.comparison --again vit adan    run a cell's seed 1 again and compare
    python -m benchmarks.comparison --weights RUNS      keep weights and logs of the winners' seed 1

The runs are those of benchmarks/sweep.py.

Examples:
    python -m benchmarks.comparison
    python -m benchmarks.comparison --again vit adan
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.comparison.records import COMMAND, RECORDS
from repro.train.cli import command_line


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__, prog=COMMAND)
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="JSONL")
    parser.add_argument("--out", type=Path, default=RECORDS.parent, metavar="FOLDER")
    parser.add_argument("--again", nargs=2, metavar=("TASK", "OPTIMIZER"), help="exit status 1 if it differs")
    parser.add_argument("--weights", type=Path, metavar="RUNS", help="--runs of benchmarks/sweep.py")
    parser.add_argument("--data", type=Path, metavar="PATH", help="as for benchmarks/sweep.py")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import shutil
import sys
import tempfile

from benchmarks import sweep
from benchmarks.comparison import page, times
from benchmarks.comparison.design import COMPARISON, OPTIMIZERS, SEEDS, TASKS
from benchmarks.comparison.measures import best_point, estimate, finals, winner
from benchmarks.comparison.records import Record, Stage, load, select
from benchmarks.comparison.todo import Job
from repro.errors import UserError
from repro.runs import CONFIG
from repro.train import checkpoint
from repro.train.cli import exit_status
from repro.train.run_folder import refuse_foreign_page, run_name


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or carry out --again or --weights, and return the exit status."""
    options = read_options(arguments)
    records = load(options.records)
    if not records:
        raise UserError(f"{options.records}: no runs; make some with `python benchmarks/sweep.py`")
    if options.again:
        task, optimizer = options.again
        return again(task, optimizer, options)
    if options.weights:
        kept = weights(records, options.weights, options.out / "winners")
        print(f"{options.out / 'runs'}: {', '.join(kept)}")
        return 0
    refuse_foreign_page(options.out / "README.md", "comparison")  # the command's name has changed
    files = page.write(records, times.load(options.records.with_name("times.jsonl")), options.out)
    print(f"{options.out}: {', '.join(files)}")
    return 0


def again(task: str, optimizer: str, options: argparse.Namespace) -> int:
    """Run the first seed of a cell again; return 1 if its loss changed and is outside the cell's interval.

    Raises:
        UserError: there is no such cell, or it has no result yet.
    """
    records = load(options.records)
    if task not in COMPARISON.tasks or optimizer not in OPTIMIZERS:
        known = f"tasks are {', '.join(COMPARISON.tasks)}; optimizers are {', '.join(OPTIMIZERS)}"
        raise UserError(f"--again {task} {optimizer}: {known}")
    point, losses = best_point(records, task, optimizer), finals(records, task, optimizer)
    if point is None or not losses:
        raise UserError(f"--again {task} {optimizer}: has no result in {options.records}")
    job = Job(task, optimizer, Stage.SEEDS, point.weight_decay, (point.octave,), SEEDS[:1])
    (before,) = select(records, task=task, optimizer=optimizer, stage=Stage.SEEDS, seed=SEEDS[0])
    threads = before.environment["threads"]
    with tempfile.TemporaryDirectory() as folder:
        words = argparse.Namespace(runs=Path(folder), data=options.data, launcher=[], threads=threads)
        (now,) = sweep.run(job, words)
    interval = estimate(losses)
    inside = now.final == before.final or interval.low <= now.final <= interval.high
    print(f"{task}, {optimizer}, seed {SEEDS[0]}: {now.final:.6g} now, {before.final:.6g} then; "
          f"{len(losses)} seeds: {interval.format('.6g')}: {'agrees' if inside else 'DIFFERS'}")  # fmt: skip
    return 0 if inside else 1


def weights(records: Sequence[Record], runs: Path, out: Path) -> list[str]:
    """Copy the first seed's run of every task's winner, with only its newest weights; return the names.

    Raises:
        UserError: `runs` has none of them.
    """
    kept = []
    for record in select(records, stage=Stage.SEEDS, seed=SEEDS[0]):
        if record.task not in TASKS or record.optimizer != winner(records, record.task):
            continue
        name = run_name([*record.overrides, f"seed={record.seed}"])
        for folder in (runs / record.task).glob(f"*/{name}"):
            if (newest := checkpoint.newest(folder / "checkpoints")) is None:
                continue
            target = out / f"{record.task}-{record.optimizer}"
            target.mkdir(parents=True, exist_ok=True)
            for file in (*folder.glob("*.json*"), folder / CONFIG):
                shutil.copy(file, target / file.name)
            shutil.copy(newest / "model.safetensors", target / "model.safetensors")
            kept.append(target.name)
    if not kept:
        raise UserError(f"--weights {runs}: has no run of the comparison with weights")
    return kept


if __name__ == "__main__":
    sys.exit(main())
