"""Say what a row of the ledger needs before it is started: memory, tokens per second, days and money.

    python scripts/plan.py ROW... --gpus 8xH100 [--set key=value ...]   does it fit; what would make it fit
    python scripts/plan.py ROW... --gpus 8xH100 --optimizers adamw,...  memory by optimizer
    python scripts/plan.py [ROW...] --measure                           train for real here, and compare

Memory is counted, on tensors without values; speed is computed with an assumed share of the GPU's peak. With
--out DIR the tables are also written there, memory.md and plan.md, with a json each. See docs/plan.md.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parent.parent))  # last, so that an installed optim comes first

from repro.environment import environment
from repro.errors import UserError
from repro.hardware import GPUS
from repro.ledger import rows
from repro.planner import footprint, plan
from repro.planner.footprint import Measured
from repro.planner.plan import Job, Machine, Memory
from repro.train.cli import exit_status
from repro.train.run_folder import write_atomically

# What --measure trains where no row is named: small models, but larger than all else in a process.
_SMALL = [
    "amp=no",
    "batch_size=4",
    "gradient_accumulation_steps=2",
    "data.sequence_length=256",
    "tokenizer.vocab_size=16384",
]
_SMALL += ["model.vocab_size=16384"]
_GPT2 = [*_SMALL, "model.n_layer=6", "model.n_embd=512", "model.n_head=8"]
_LLAMA = [*_SMALL, "model.num_hidden_layers=6", "model.hidden_size=512", "model.intermediate_size=1408"]
_LLAMA += ["model.num_attention_heads=8", "model.num_key_value_heads=8", "fsdp=false"]
_MOE = [*_SMALL, "model.num_hidden_layers=4", "model.hidden_size=256", "model.intermediate_size=1024"]
_MOE += ["model.num_attention_heads=4", "model.num_key_value_heads=4"]
_AGAIN = ["gradient_checkpointing=true"]
CASES: list[tuple[str, list[str], str]] = [
    *(
        ("adam_mini/gpt2_small", _GPT2, name)
        for name in ("adamw", "adan", "adan-bfloat16", "adan-int8", "adam_mini", "adamw8bit")
    ),
    ("adam_mini/gpt2_small", [*_GPT2, *_AGAIN], "adamw"),
    ("adam_mini/llama_1b", _LLAMA, "adan"),
    ("adam_mini/llama_1b", [*_LLAMA, *_AGAIN], "adan"),
    ("adam_mini/llama_1b", _LLAMA, "adam_mini"),
    ("moe/8x0.1b_10b_adan", _MOE, "adan"),
    ("moe/8x0.1b_10b_adan", [*_MOE, *_AGAIN], "adan"),
]
TOLERANCE = 0.1


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was asked for and return the exit status: 1 where --measure finds a prediction to be off."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(words)
    command = ["python", "scripts/plan.py", *words]
    if not options.rows and not options.measure:
        raise UserError(
            "name a row, as in `python scripts/plan.py ROW --gpus 8xH100`; reproduce.py lists them"
        )
    if options.measure:
        return compare(options, command)
    machine = Machine.read(options.gpus)
    if options.optimizers:
        by_optimizer(options, machine, command)
        return 0
    for name in options.rows:
        print("\n".join(describe(name, options, machine)), flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--gpus", default="8xH100", help=f"number and kind: {', '.join(GPUS)} (8xH100)")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="as for the recipe")
    parser.add_argument("--optimizers", help="names in configs/optimizer, with -bfloat16 or -int8")
    parser.add_argument("--mfu", type=float, help="share of the peak, instead of what is assumed")
    parser.add_argument(
        "--price", type=float, help="dollars for an hour of a GPU, instead of what is assumed"
    )
    parser.add_argument("--measure", action="store_true", help="train some steps here and compare")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the table there")
    return parser


# ---- a plan


def describe(name: str, options: argparse.Namespace, machine: Machine) -> list[str]:
    """Return the plan of a row, as lines for people."""
    recipe = rows.load(name, options.set)
    task = plan.job(recipe)
    gpu = GPUS[str(machine.gpu)]
    need = plan.memory(task, machine)
    share = plan.utilisation(task) if options.mfu is None else options.mfu
    if not 0 < share <= 1:
        raise UserError(f"--mfu {share}: must lie above 0, and at 1 at most")
    price = gpu.dollars if options.price is None else options.price
    config = task.config
    fits = need.total <= gpu.memory
    lines = [
        f"{name} on {machine}: {plan.micro_batch(config, machine.count)} {_samples(task)} in a micro-batch, "
        f"{config['gradient_accumulation_steps']} of them a step on each GPU, amp={config['amp']}",
        "memory of a GPU, GB: " + parts(need.kinds),
        f"  {need.total / 1e9:.1f} of {gpu.memory / 1e9:.0f} GB: {'it fits' if fits else 'it does not fit'}",
    ]
    if not fits:
        for changes, total in plan.remedies(name, options.set, machine):
            verdict = "it fits" if total <= gpu.memory else "does not fit yet"
            lines.append(f"  with {' '.join(changes)}: {total / 1e9:.1f} GB, {verdict}")
    speed = plan.speed(task, machine, share, price)
    assumed = "assumed" if options.mfu is None else "given"
    lines.append(
        f"speed: {speed.per_second:,.0f} {task.unit} per second, at {share:.0%} of the peak ({assumed} for a "
        f"{task.family}; MFU {speed.mfu:.0%})"
    )
    if speed.days is not None and speed.dollars is not None:
        assumed = "assumed" if options.price is None else "given"
        lines.append(
            f"time: {speed.days:.2g} days; cost: ${speed.dollars:,.0f} at ${price:.2f} for an hour of a GPU "
            f"({assumed})"
        )
    return [*lines, ""]


def parts(kinds: Counter[str]) -> str:
    """Return the bytes by kind, in GB."""
    order = sorted(kinds, key=lambda kind: (*footprint.KINDS, kind).index(kind))
    return ", ".join(f"{kind} {kinds[kind] / 1e9:.2f}" for kind in order if kinds[kind])


def _samples(task: Job) -> str:
    return "images" if task.per_sample == 1 else f"sequences of {task.per_sample:,} tokens"


# ---- memory by optimizer


def by_optimizer(options: argparse.Namespace, machine: Machine, command: list[str]) -> None:
    """Print a table of rows and optimizers, and write it."""
    names = options.optimizers.split(",")
    configs = {name: plan.optimizer(name) for name in names}
    lines = ["| row | optimizer | states, GB | share of AdamW's | in all on a GPU, GB | fits |"]
    lines.append("|---|---|---|---|---|---|")
    found = []
    pairs = [(row, name) for row in options.rows for name in names]
    others: dict[str, Counter[str]] = {}
    for row, name in tqdm(pairs, unit="plan", leave=False, disable=None):
        task = plan.job(rows.load(row, options.set))
        if row not in others:
            others[row] = plan.all_but_states(task, machine)
        meta = task.model()
        states = footprint.states(meta, configs[name])
        yardstick = footprint.states(meta, plan.optimizer("adamw"))
        size, of = (x.sharded + x.whole for x in (states, yardstick))
        task = replace(task, config={**task.config, "optimizer": configs[name]})
        need, why = _need(task, machine, others[row])
        total, fits = "-", why
        if need is not None:
            total = f"{need.total / 1e9:.1f}"
            fits = "yes" if need.total <= GPUS[str(machine.gpu)].memory else "no"
        lines.append(f"| {row} | {name} | {size / 1e9:.3f} | {size / of:.1%} | {total} | {fits} |")
        kinds = None if need is None else dict(need.kinds)
        found.append({"row": row, "optimizer": name, "states": states.by_name, "bytes": kinds, "why": why})
    print("\n".join(lines))
    if options.out is not None:
        note = (
            f"On {machine}, per GPU; GB are 1e9 bytes. States are those of the whole model; under FSDP a GPU "
            "has its part of them. Counted, not measured: see docs/plan.md."
        )
        write(options.out, "memory", "Memory by optimizer", [note, "", *lines], found, command)


def _need(task: Job, machine: Machine, others: Counter[str]) -> tuple[Memory | None, str]:
    try:
        return plan.memory(task, machine, others), ""
    except UserError as error:
        return None, str(error)


# ---- measured


def compare(options: argparse.Namespace, command: list[str]) -> int:
    """Print predictions next to measurements, write them, and return 1 if one is more than TOLERANCE off."""
    names = options.optimizers.split(",") if options.optimizers else [""]
    cases = [(row, options.set, name) for row in options.rows for name in names] or CASES
    device = "CUDA allocator" if _cuda() else "resident set"
    lines = [f"| row | what differs | optimizer | predicted, MB | tensors, MB | {device}, MB | off by |"]
    lines.append("|---|---|---|---|---|---|---|")
    found, off = [], 0
    for row, overrides, name in tqdm(cases, unit="case", leave=False, disable=None):
        predicted, measured = one(row, overrides, name)
        difference = predicted.total() / measured.memory - 1
        off += abs(difference) > TOLERANCE
        what = "gradient checkpointing" if set(_AGAIN) <= set(overrides) else ""
        numbers = [predicted.total(), measured.kinds.total(), measured.memory]
        cells = " | ".join(f"{x / 1e6:.1f}" for x in numbers)
        lines.append(f"| {row} | {what} | {name or 'its own'} | {cells} | {difference:+.1%} |")
        tqdm.write(lines[-1])
        kinds = {kind: [predicted[kind], measured.kinds[kind]] for kind in footprint.KINDS}
        record = {"row": row, "overrides": overrides, "optimizer": name, "bytes": kinds}
        found.append(record | {"predicted": predicted.total(), "measured": measured.memory})
    by_kind = ["", "| case | " + " | ".join(f"{kind}, MB" for kind in footprint.KINDS) + " |"]
    by_kind.append("|---" * (len(footprint.KINDS) + 1) + "|")
    for i, record in enumerate(found, 1):
        pairs = (record["bytes"][kind] for kind in footprint.KINDS)
        by_kind.append(f"| {i} | " + " | ".join(f"{a / 1e6:.1f} : {b / 1e6:.1f}" for a, b in pairs) + " |")
    lines += [*by_kind, "", f"{len(found) - off} of {len(found)} within {TOLERANCE:.0%}"]
    print("\n".join(lines))
    if options.out is not None:
        note = (
            "Predicted before and measured in a fresh process each: bytes of live tensors, and the growth "
            "of the process. Below, predicted : tensors at the peak, by kind, case by case. See docs/plan.md."
        )
        write(options.out, "plan", "Predicted and measured memory", [note, "", *lines], found, command)
    return int(off > 0)


def one(row: str, overrides: list[str], name: str) -> tuple[Counter[str], Measured]:
    """Return the predicted bytes of a case by kind, and the measured ones."""
    task = _task(row, overrides, name)
    predicted = plan.memory(task, Machine("H100" if _cuda() else None)).kinds
    with _exact_allocation():
        pool = multiprocessing.get_context("spawn").Pool(1)
    with pool:
        return predicted, pool.apply(_measure, (row, overrides, name))


def _task(row: str, overrides: list[str], name: str) -> Job:
    task = plan.job(rows.load(row, overrides))
    return replace(task, config={**task.config, "optimizer": plan.optimizer(name)}) if name else task


def _measure(row: str, overrides: list[str], name: str) -> Measured:
    task = _task(row, overrides, name)
    size = plan.micro_batch(task.config, 1)
    task.model()  # imports what a model needs
    return footprint.measure(lambda: task.step(task.model(real=True), size), task.config["optimizer"])


@contextmanager
def _exact_allocation() -> Iterator[None]:
    """Let processes that begin in it give memory back at once, so that what they have is what they use."""
    key, before = "MALLOC_MMAP_THRESHOLD_", os.environ.get("MALLOC_MMAP_THRESHOLD_")
    os.environ[key] = str(1 << 16)  # of glibc; larger blocks are mapped each by itself
    try:
        yield
    finally:
        os.environ.pop(key)
        if before is not None:
            os.environ[key] = before


def _cuda() -> bool:
    return torch.cuda.is_available()


def write(folder: Path, name: str, title: str, lines: list[str], found: Any, command: list[str]) -> None:
    """Write a page and the numbers in it."""
    here = environment()
    made = f"`{' '.join(command)}` at commit {here['commit']}, {here['time']}, {here['system']}"
    head = [f"# {title}", "", made, ""]
    result = {"command": command, "environment": here, "results": found}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{name}.md", "\n".join([*head, *lines, ""]))
        write_atomically(folder / f"{name}.json", json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--out={folder}: cannot be written to ({error.strerror})") from error


if __name__ == "__main__":
    sys.exit(main())
