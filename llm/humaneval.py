"""Score a language model on programming tasks: `python llm/humaneval.py MODEL --data PATH --execute`.

    python llm/humaneval.py runs/llm/NAME --data PATH --row gpt2/adan_150k --execute
    python llm/humaneval.py MODEL --data PATH --samples 20 --temperature 0.2 --k 1 10 --execute
    python llm/humaneval.py --completions FILE.jsonl --data PATH --execute    completions of another program
    python llm/humaneval.py --canonical --data PATH --execute                 the tasks' own solutions

MODEL is a run of llm/pretrain.py, a folder that transformers wrote, or a name on the Hugging Face hub. PATH
is HumanEval.jsonl.gz, its folder, or tasks in its format; the default is five small tasks of our own.
--execute confirms that model-written programs are run, in a sandbox. See docs/humaneval.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llm.code_eval.jail import Limits
from repro.train.cli import command_line, file_size

SAMPLING = {"samples": 200, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 512}


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    limits = Limits()
    parser = command_line(__doc__)
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL")
    add("--completions", type=Path, metavar="FILE", help="lines with task_id and completion")
    add("--canonical", action="store_true", help="score the tasks' own solutions")
    add("--execute", action="store_true", help="confirm that the programs are run")
    add("--unprotected", action="store_true", help="even if files or network cannot be protected")
    add("--data", type=Path, metavar="PATH", help="tasks (default: five of our own)")
    add("--row", help="ledger row: use its sampling, and show its published values")
    add("--samples", type=int, help=f"per task (default: {SAMPLING['samples']})")
    add("--temperature", type=float, help=f"0: the most likely token (default: {SAMPLING['temperature']})")
    add("--top-p", type=float, help=f"(default: {SAMPLING['top_p']})")
    add("--max-new-tokens", type=int, help=f"(default: {SAMPLING['max_new_tokens']})")
    add("--seed", type=int, default=0, help="of the samples and of the intervals (default: 0)")
    add("--batch-size", type=int, default=32, help="samples at a time (default: 32)")
    add("--amp", choices=["no", "bf16", "fp16"], default="no", help="weights in half precision (default: no)")
    add("--k", type=int, nargs="+", help="of pass@k (default: 1, 10 and 100, as far as samples permit)")
    add("--workers", type=int, default=2, help="programs run in parallel (default: 2)")
    add("--timeout", type=float, default=limits.seconds, help=f"seconds (default: {limits.seconds:g})")
    add("--memory", type=file_size, default=limits.memory, help="per process, as 500MB (default: 512 MiB)")
    add("--out", type=Path, metavar="FOLDER", help="default: runs/humaneval/NAME")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import collections
import hashlib
import json
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch
from tqdm import tqdm

from llm import models
from llm.code_eval import problems
from llm.code_eval.problems import Problem
from llm.code_eval.sandbox import Sandbox, Verdict
from llm.code_eval.scores import against, describe, summarise
from llm.generate import sample
from repro.environment import environment
from repro.errors import UserError
from repro.ledger import rows
from repro.loading import read_json, read_lines
from repro.publish import alone
from repro.train.cli import exit_status
from repro.train.run_folder import write_atomically

STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # arXiv 2107.03374, section 2.2
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KS = (1, 10, 100)
PROBLEMS = 164  # of HumanEval


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 0, 2 after `error: ...`, 130 if interrupted."""
    options = read_options(arguments)
    if (options.model is not None) + (options.completions is not None) + options.canonical != 1:
        raise UserError("name a MODEL, or give --completions FILE or --canonical")
    if not options.execute:
        risk = "this runs programs that a model wrote, in a sandbox (docs/humaneval.md)"
        raise UserError(f"{risk}: confirm by --execute")
    try:
        evaluate(options)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Sample, judge, write the files of the folder; print and return the result.

    Raises:
        UserError: an argument, a file or the folder cannot be used.
    """
    row = None if options.row is None else rows.load(options.row)
    sampling = of_row(row, options)
    tasks = problems.read(options.data)
    if row is not None and len(tasks) != PROBLEMS:
        raise UserError(f"--row {options.row}: is for HumanEval's {PROBLEMS} tasks, --data has {len(tasks)}")
    given = None
    if options.canonical:
        given = [(task, task.canonical_solution) for task in tasks]
    elif options.completions is not None:
        given = problems.read_completions(options.completions, tasks)
    counts = collections.Counter(task.task_id for task, _ in given or [])
    fewest = min(counts.values()) if counts else sampling["samples"]
    for name, minimum in (("samples", 1), ("batch_size", 1), ("workers", 1)):
        if (value := sampling.get(name, getattr(options, name))) < minimum:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {minimum}")
    ks = options.k or [k for k in KS if k <= fewest]
    if wrong := [k for k in ks if not 1 <= k <= fewest]:
        raise UserError(f"--k {wrong[0]}: must be 1 to {fewest}, as there are {fewest} samples of a task")

    settings = {
        "model": options.model or ("canonical" if options.canonical else str(options.completions)),
        "tasks": digest([asdict(task) for task in tasks]),
        "timeout": options.timeout,
        "memory": options.memory,
    }
    if given is None:
        settings |= {**sampling, "seed": options.seed, "batch_size": options.batch_size, "amp": options.amp}
    else:
        settings["completions"] = digest([(task.task_id, text) for task, text in given])
    named = options.model or (options.completions.stem if options.completions else "canonical")
    folder = options.out or Path("runs/humaneval") / Path(named).name
    begin(folder, settings)
    with alone(folder), ExitStack() as stack:
        # before sampling, as it fails if the system does not permit enough protection
        limits = Limits(seconds=options.timeout, memory=options.memory)
        boxes = [stack.enter_context(Sandbox(limits, options.unprotected)) for _ in range(options.workers)]
        protection = boxes[0].protection
        for which, layers in protection.items():
            print(f"{which}: {'; '.join(layers) or 'nothing'}")
        if given is None:
            given = sampled(options, sampling, tasks, folder / "samples.jsonl")
        results = judged(boxes, given, folder / "results.jsonl")
    summary = summarise(results, ks, options.seed) | against(row, ks)
    summary |= {"tasks_in_all": len(tasks), "settings": settings, "protection": protection}
    summary["environment"] = environment()
    write_atomically(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    print(describe(summary), f"{folder}/summary.json", sep="\n")
    return summary


def of_row(row: rows.Recipe | None, options: argparse.Namespace) -> dict[str, Any]:
    """Return the sampling options: the command line's, else the row's, else SAMPLING."""
    if row is not None and not any(figure.metric.startswith("pass@") for figure in row.row.published):
        raise UserError(f"--row {options.row}: it is not evaluated on HumanEval")
    own = {} if row is None else row.config["sampling"]
    return {
        key: own.get(key, default) if getattr(options, key) is None else getattr(options, key)
        for key, default in SAMPLING.items()
    }


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """Create the folder, or raise UserError if it was begun with other settings."""
    path = folder / "settings.json"
    if path.exists():
        before = read_json(path, dict, "take another --out FOLDER")
        for key in sorted(before.keys() | settings.keys()):
            if before.get(key) != settings.get(key):
                raise UserError(
                    f"{folder} was begun with {key} {before.get(key)}, now it is {settings.get(key)}; "
                    "set it back, or take another --out FOLDER"
                )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror}; take another --out FOLDER") from error
    if any(folder.iterdir()):
        raise UserError(f"{folder} has other files; take another --out FOLDER")
    write_atomically(path, json.dumps(settings, indent=1) + "\n")


def sampled(
    options: argparse.Namespace, sampling: dict[str, Any], tasks: Sequence[Problem], path: Path
) -> list[tuple[Problem, str]]:
    """Return the completions of all tasks, continuing a file that has the first of them.

    The file is in the format of HumanEval's code: a line for each sample, with task_id and completion.
    """
    wanted = [task for task in tasks for _ in range(sampling["samples"])]
    size = options.batch_size
    done = lines_of(path)
    if len(done) < len(wanted):
        done = done[: len(done) // size * size]  # whole batches, as rounding depends on the batch
        rewrite(path, done)
        model: Any = models.load(options.model)
        tokenizer = models.read_tokenizer(options.model)
        if torch.cuda.is_available():
            model.to("cuda")
        model.to(DTYPES[options.amp])
        with tqdm(total=len(wanted), initial=len(done), desc="sampling", unit="samples") as bar:
            for start in range(len(done), len(wanted), size):
                batch = wanted[start : start + size]
                prompts = [task.prompt for task in batch]
                texts = sample(
                    model, tokenizer, prompts, max_new_tokens=sampling["max_new_tokens"],
                    temperature=sampling["temperature"], top_p=sampling["top_p"], stop=STOP,
                    seed=options.seed, first=start, batch_size=size,
                )  # fmt: skip
                new = [{"task_id": t.task_id, "completion": x} for t, x in zip(batch, texts, strict=True)]
                append(path, new)
                done += new
                bar.update(len(batch))
    return [(task, record["completion"]) for task, record in zip(wanted, done, strict=True)]


def judged(
    boxes: Sequence[Sandbox], given: Sequence[tuple[Problem, str]], path: Path
) -> list[dict[str, Any]]:
    """Return the verdict on each completion, continuing a file that has the first of them."""
    done = lines_of(path)
    rewrite(path, done)
    free: queue.SimpleQueue[Sandbox] = queue.SimpleQueue()
    for box in boxes:
        free.put(box)

    def judge(pair: tuple[Problem, str]) -> Verdict:
        task, completion = pair
        box = free.get()
        try:
            return box.judge(task.prompt + completion + "\n", task.prompt, task.test, task.entry_point)
        finally:
            free.put(box)

    rest = given[len(done) :]
    with (
        tqdm(total=len(given), initial=len(done), desc="running", unit="programs") as bar,
        ThreadPoolExecutor(len(boxes)) as pool,
    ):
        for (task, _), verdict in zip(rest, in_turn(pool, judge, rest, 4 * len(boxes)), strict=True):
            record = {"task_id": task.task_id, "passed": verdict.passed, "reason": verdict.reason}
            append(path, [record])
            done.append(record)
            bar.update()
    return done


def in_turn(pool: ThreadPoolExecutor, work: Any, items: Sequence[Any], ahead: int) -> Iterator[Any]:
    """Yield work(item) in order, with at most `ahead` items in progress."""
    begun: collections.deque[Any] = collections.deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) >= ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()


# ---- files


def digest(content: Any) -> str:
    """Return a fingerprint of a JSON value."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, without an incomplete last line."""
    return [record for _, record in read_lines(path, dict[str, Any])]


def rewrite(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Replace the content of a file by these records."""
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))


def append(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Append records to a file."""
    with path.open("a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


if __name__ == "__main__":
    sys.exit(main())
