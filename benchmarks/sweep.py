"""Run the fair comparison of optimizers: tune each by the same rule, then run other seeds.

Every optimizer is tuned by the same rule (benchmarks.comparison.search) with one seed on validation data.
Then the best point is run with other seeds, with half the steps, and for the claims of the paper. Each group
of runs is a multirun of Hydra, so the words after `--` can choose a launcher:

    python benchmarks/sweep.py -- hydra/launcher=submitit_slurm

Every run that ends is appended to OUT, and the next runs follow from OUT alone: the command can be stopped at
any moment and given again. benchmarks/comparison makes the tables and figures. To measure the time of a step,
use a quiet machine and a separate command, in which all optimizers of a task take turns:

    python benchmarks/sweep.py --times 3

Examples:
    python benchmarks/sweep.py --list
    python benchmarks/sweep.py --tasks vit --optimizers adamw adan --jobs 2 --out runs/mine.jsonl
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.comparison.design import COMPARISON, OPTIMIZERS
from benchmarks.comparison.records import RECORDS
from repro.train.cli import command_line


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    split = words.index("--") if "--" in words else len(words)
    parser = command_line(__doc__)
    for option, names in (("--tasks", list(COMPARISON.tasks)), ("--optimizers", list(OPTIMIZERS))):
        said = f"of {', '.join(names)}; default: all"
        parser.add_argument(option, nargs="+", choices=names, default=names, metavar="NAME", help=said)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default 1)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each run (default 1)")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("ADAN_DATA"), metavar="PATH",
        help="the folder with fashion-mnist/, for the tasks batch_*; default: the one that ADAN_DATA names",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=RECORDS, metavar="JSONL")
    parser.add_argument("--runs", type=Path, default=Path("runs/comparison"), metavar="FOLDER")
    parser.add_argument("--list", action="store_true", help="show what is done and next")
    parser.add_argument("--times", type=int, default=0, metavar="ROUNDS", help="time a step instead")
    options = parser.parse_args(words[:split])
    options.launcher = words[split + 1 :]
    return options


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import contextlib
import importlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import product
from multiprocessing import get_context, parent_process
from typing import cast

import torch
from tqdm import tqdm

from benchmarks.common import check
from benchmarks.comparison import times
from benchmarks.comparison.design import SEEDS, TASKS, Task
from benchmarks.comparison.measures import best_point
from benchmarks.comparison.records import Record, Stage, append, load, outcome, where
from benchmarks.comparison.todo import Job, todo
from repro.errors import UserError
from repro.hardware import show_time
from repro.runs import read
from repro.train import checkpoint
from repro.train.cli import exit_status
from repro.train.run_folder import run_name

Pair = tuple[str, str]  # a task and an optimizer
Todo = Callable[[str, str, Sequence[Record]], Sequence[Job]]

# Three speed records; the last two count, as Shampoo computes its roots every 20 steps from the 20th on.
SHORT = ("stop_after=60", "run.log_every=20", "eval_every=null", "eval_epochs=null")


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the missing runs and return the exit status."""
    options = read_options(arguments)
    pairs = COMPARISON.cells(options.tasks, options.optimizers)
    if options.list:
        found = load(options.out)
        for task, optimizer in pairs:
            done = sum(record.task == task and record.optimizer == optimizer for record in found)
            jobs = [f"{job.stage} {job.variant}".strip() for job in todo(task, optimizer, found)]
            print(f"{task:10} {optimizer:10} {done:4} runs; next: {', '.join(jobs) or 'nothing'}")
        return 0
    check(options, "jobs", "threads")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    missing = [task for task, _ in pairs if COMPARISON.tasks[task].data and options.data is None]
    if missing:
        folder = COMPARISON.tasks[missing[0]].data
        raise UserError(f"{missing[0]}: set --data or ADAN_DATA to the folder with {folder}/")
    return measure_times(options) if options.times else sweep(pairs, todo, options)


def sweep(pairs: Sequence[Pair], todo: Todo, options: argparse.Namespace) -> int:
    """Finish the pairs of a task and an optimizer, the first ones first; return 2 if one failed.

    The jobs that `todo` returns for a pair run at the same time, as many as there may be; what comes next is
    asked when all of them have ended, so that it does not depend on which one ends first.

    Args:
        todo: the next jobs of a pair, from the records so far; none if it is finished.
        options: jobs, out (the file of the records), and those of `run`.
    """
    failed, begin, before = False, time.monotonic(), len(load(options.out))
    waiting: dict[Pair, list[Job]] = {pair: [] for pair in pairs}  # of the pairs that are not finished
    running: dict[Future[list[Record]], Pair] = {}
    with (
        ProcessPoolExecutor(options.jobs, get_context("spawn"), end_with_parent) as pool,
        tqdm(total=len(pairs), unit="cell") as bar,
    ):

        def start_one() -> bool:
            """Start the first job that can; return whether there is one."""
            for pair, jobs in list(waiting.items()):
                if not jobs and pair not in running.values():
                    jobs += todo(*pair, load(options.out))
                    if not jobs:
                        del waiting[pair]
                        bar.update()
                if jobs:
                    running[pool.submit(run_logged, jobs.pop(0), options)] = pair
                    return True
            return False

        while True:
            while len(running) < options.jobs and start_one():
                pass
            if not running:
                break
            ended, _ = wait(running, timeout=10, return_when=FIRST_COMPLETED)
            for future in ended:
                pair = running.pop(future)
                if (error := future.exception()) is None:
                    for record in future.result():
                        append(options.out, record)
                elif isinstance(error, BrokenProcessPool):
                    raise UserError(
                        f"{' '.join(pair)}: a process was killed, perhaps for want of memory; give the "
                        "command again, with fewer --jobs"
                    )
                else:
                    failed = True
                    bar.write(f"error: {' '.join(pair)}: {error}", file=sys.stderr)
                    bar.update(waiting.pop(pair, None) is not None)
            bar.set_postfix_str(f"{len(load(options.out)) - before} runs")
    runs = len(load(options.out)) - before
    took = show_time((time.monotonic() - begin) / 3600)
    print(f"{runs} runs in {took}, now {before + runs} in {options.out}")
    return 2 if failed else 0


def end_with_parent() -> None:
    """End this process when its parent is killed, or it would go on during the next sweep."""

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Append all output to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


def run_logged(job: Job, options: argparse.Namespace) -> list[Record]:
    """Call `run` in a separate process, whose output goes to a file of the job's task and optimizer."""
    with logged(options.runs / f"{job.task}-{job.optimizer}.log"):
        return run(job, options)


def run(job: Job, options: argparse.Namespace) -> list[Record]:
    """Run a job as a multirun of its recipe; return a record for each run.

    Args:
        options: with threads, runs (the folder of the runs), data and launcher.

    Raises:
        UserError: a run did not start, or neither ended nor diverged.
    """
    torch.set_num_threads(options.threads)
    task = job.about
    lrs = [f"{job.lr(octave):g}" for octave in job.octaves]
    root = options.runs / job.task
    where = [f"run.root={root}", "run.keep=1"]
    if task.data is not None:
        where.append(f"data.root={options.data / task.data}")
    command = ["-m", *job.words, f"optimizer.lr={','.join(lrs)}", f"seed={','.join(map(str, job.seeds))}"]
    recipe(task)([*command, *where, *options.launcher])
    found = []
    for octave, seed in job.runs():
        words = [*job.words, f"optimizer.lr={job.lr(octave):g}"]
        folder = next(root.glob(f"*/{run_name([*words, f'seed={seed}'])}"), None)
        if folder is None:
            raise UserError(
                f"{task.script} {' '.join(words)} seed={seed}: the run did not begin; its log says why"
            )
        found.append(
            Record(
                task=job.task,
                optimizer=job.optimizer,
                stage=job.stage,
                variant=job.variant,
                octave=octave,
                lr=job.lr(octave),
                weight_decay=job.weight_decay,
                seed=seed,
                overrides=tuple(words),
                **outcome(folder),
            )
        )
        if job.stage != Stage.SEEDS or seed != SEEDS[0]:  # benchmarks/comparison --weights copies these
            checkpoint.discard(folder / "checkpoints")
    return found


def measure_times(options: argparse.Namespace) -> int:
    """Append the time of each optimizer on each task, in rounds, unless it is already there."""
    torch.set_num_threads(options.threads)
    path, records = options.out.with_name("times.jsonl"), load(options.out)
    known = {(time.task, time.round, time.optimizer) for time in times.load(path)}
    every = product(options.tasks, range(1, options.times + 1), options.optimizers)
    wanted = [
        key for key in every if key[0] in TASKS and COMPARISON.works(key[0], key[2]) and key not in known
    ]
    for task, number, name in tqdm(wanted, unit="run"):
        point = best_point(records, task, name) or COMPARISON.space(task, name).grid()[0]
        job = Job(task, name, "time", point.weight_decay, (point.octave,), SEEDS[:1])
        log = options.runs / "times.log"
        with tempfile.TemporaryDirectory() as root, logged(log):
            command = [*job.words, f"optimizer.lr={job.lr(point.octave):g}", *SHORT, f"run.root={root}"]
            if recipe(COMPARISON.tasks[task])([*command, "run.name=x"]):
                raise UserError(f"{task}, {name}: cannot be timed; {log} says why")
            (folder,) = Path(root).glob("*/x")
            place = where(read(folder).starts[-1])
            times.append(path, times.Time(task, name, number, times.seconds(folder), place))
    print(f"{path}: {len(wanted)} new")
    return 0


def recipe(task: Task) -> Callable[[Sequence[str]], int]:
    """Return the command of a task's recipe."""
    module = importlib.import_module(task.script.removesuffix(".py").replace("/", "."))
    return cast(Callable[[Sequence[str]], int], module.main)


if __name__ == "__main__":
    sys.exit(main())
