"""Does a small optimizer state cost quality? `python benchmarks/state_quality.py [--tasks digits gpt]`.

Trains the same three tasks with the optimizer's states in float32, bfloat16 and int8, with several seeds.
Does the mean loss with small states differ from that with float32 by more than float32's own runs differ from
seed to seed (largest minus smallest loss)?

    digits           vision/train.py, a small ViT on scikit-learn's handwritten digits
    fashion_mnist    vision/train.py, a tiny ViT, one epoch; needs the data's folder
    gpt              a GPT-2 of 1.3 M parameters on the bytes of Python's own standard library, trained here

Every finished run is a line of OUT.jsonl and is not repeated, so the command can be stopped at any moment and
given again. At the end, and with --table, OUT.md is made from these lines alone. Tensors of fewer than 4096
elements (biases, norms) keep float32 states under int8. On cores that other processes use as well,
OMP_NUM_THREADS=1 is many times faster than torch's default; two commands may share one OUT.

Examples:
    python benchmarks/state_quality.py --table
    python benchmarks/state_quality.py --tasks digits --seeds 0 1 --out runs/states
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from repro.train.cli import command_line

REFERENCE = "float32"
STORAGES = {storage: {"state_dtype": storage} for storage in (REFERENCE, "bfloat16", "int8")}
VISION = {
    "digits": ["data=digits", "epochs=25"],
    "fashion_mnist": [
        "data=fashion_mnist",
        "augment=none",
        "epochs=1",
        "schedule.warmup_epochs=0.1",
        "model.kwargs.embed_dim=64",
        "model.kwargs.depth=2",
        "model.kwargs.num_heads=4",
    ],
}
TASKS = (*VISION, "gpt")
LEARNING_RATES = {"adan": 5e-3, "adamw": 2e-3}  # of the gpt task; the vision tasks use those of configs/


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    data = os.environ.get("ADAN_DATA")
    for option, names, usual in (
        ("--tasks", list(TASKS), list(TASKS)),
        ("--optimizers", list(LEARNING_RATES), ["adan"]),
        ("--storages", list(STORAGES), list(STORAGES)),
    ):
        said = f"of {', '.join(names)}; default: {'all' if usual == names else ', '.join(usual)}"
        parser.add_argument(option, nargs="+", choices=names, default=usual, metavar="NAME", help=said)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pure-bf16", action="store_true", help="gpt also with bfloat16 parameters")
    parser.add_argument("--gpt-steps", type=int, default=300)
    parser.add_argument(
        "--fashion-mnist",
        type=Path,
        metavar="PATH",
        default=Path(data, "fashion-mnist") if data else None,
        help="folder of the four IDX files; default: fashion-mnist in the folder that ADAN_DATA names",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="folder of the vision runs")
    parser.add_argument("--out", type=Path, default=Path("results/quality/states"), help="of .jsonl and .md")
    parser.add_argument("--table", action="store_true", help="train nothing, make the table again")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import functools
import itertools
import math
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from tqdm import tqdm

import adan_optim
from benchmarks.common import check
from repro.environment import environment
from repro.errors import UserError
from repro.hardware import show_time
from repro.loading import read_lines
from repro.publish import append_line
from repro.results import as_text, page, table
from repro.runs import read_summary
from repro.train import checkpoint
from repro.train.cli import exit_status
from repro.train.run_folder import run_name, write_atomically

ROOT = Path(__file__).resolve().parent.parent
# Parameters and gradients in bfloat16 as well, for the gpt task only. Its arithmetic stays float32: the
# comparison is about storage, and products in bfloat16 are very slow on many CPUs.
PURE_BF16 = {
    f"pure bfloat16, {rounding}": {"state_dtype": "bfloat16", "param_rounding": rounding}
    for rounding in ("nearest", "stochastic", "kahan", "split")
}
LENGTH, BATCH = 128, 16  # bytes per sequence, sequences per step
VALIDATION = 256  # sequences


@dataclass(frozen=True)
class Run:
    """The identity of a run; `recipe` describes its other settings."""

    task: str
    optimizer: str
    storage: str
    seed: int
    recipe: str


# ---- the tasks: each returns losses (nats), accuracy (percent or None), seconds, state bytes, parameters


def train_vision(run: Run, fashion_mnist: Path | None, root: Path) -> dict[str, Any]:
    """Run vision/train.py, or continue it, in its folder under `root`.

    Raises:
        UserError: it failed.
    """
    options = [f"optimizer.{key}={value}" for key, value in STORAGES[run.storage].items()]
    overrides = [f"optimizer={run.optimizer}", *options, f"seed={run.seed}", *run.recipe.split()]
    free = [f"run.root={root}"] + ([f"data.root={fashion_mnist}"] if run.task == "fashion_mnist" else [])
    folder = root / "vision" / run_name(overrides)
    command = [sys.executable, str(ROOT / "vision" / "train.py"), *overrides, *free]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
        raise UserError(f"{' '.join(command[1:])}: {reason}")
    summary = read_summary(folder)
    assert summary is not None  # the run ended well
    newest = checkpoint.newest(folder / "checkpoints", warn=print)
    assert newest is not None  # every epoch ends with one
    saved = torch.load(newest / "training.pt", map_location="cpu", weights_only=True)["optimizer"]["state"]
    states = [x for state in saved.values() for name, x in state.items() if name != "step"]
    return {
        "train_loss": summary["final"]["train_loss"],
        "validation_loss": summary["final"]["test_loss"],
        "validation_accuracy": summary["final"]["test_accuracy"],
        "seconds": summary["seconds"],
        "state_bytes": sum(x.nbytes for x in states),
        "parameters": summary["parameters"],
    }


@functools.cache
def corpus() -> tuple[Tensor, Tensor]:
    """Return the bytes of the standard library's Python files without tests, [n] each: train, validation.

    Every tenth file is for validation.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    files = [
        path for path in sorted(root.rglob("*.py")) if not left_out & {*path.relative_to(root).parts[:-1]}
    ]
    if not files:
        raise UserError(f"--tasks gpt: no .py files in {root}; use a Python that has its standard library")
    texts = [path.read_bytes() for path in files]
    validation = texts[::10]
    del texts[::10]
    train, held_out = (
        torch.frombuffer(bytearray(b"\n".join(part)), dtype=torch.uint8) for part in (texts, validation)
    )
    return train, held_out


def build_gpt() -> torch.nn.Module:
    """Return a GPT-2 over bytes with initial weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=256,
        n_positions=LENGTH,
        n_embd=160,
        n_layer=4,
        n_head=5,
        **dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.0),
        **dict.fromkeys(("bos_token_id", "eos_token_id")),
        loss_type="ForCausalLM",
    )
    return GPT2LMHeadModel(config)


def train_gpt(run: Run, steps: int, device: str) -> dict[str, Any]:
    """Train the GPT: linear warm-up over a tenth of the steps, then half a cosine."""
    start = time.perf_counter()
    train, validation = corpus()
    torch.manual_seed(run.seed)
    dtype = torch.bfloat16 if run.storage in PURE_BF16 else torch.float32
    model = build_gpt().to(device, dtype)
    options: dict[str, Any] = {**STORAGES, **PURE_BF16}[run.storage]
    peak = LEARNING_RATES[run.optimizer]
    optimizer = adan_optim.build_optimizer(model, run.optimizer, lr=peak, weight_decay=0.02, **options)
    generator = torch.Generator().manual_seed(run.seed)  # the same batches whatever the device

    def loss_of(source: Tensor, starts: Tensor) -> Tensor:
        tokens = source[starts[:, None] + torch.arange(LENGTH)].long().to(device)
        weights = {name: p.float() for name, p in model.named_parameters()}
        return functional_call(model, weights, kwargs={"input_ids": tokens, "labels": tokens}).loss

    losses = []
    for step in range(steps):
        lr = peak * min((step + 1) / max(steps // 10, 1), 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = loss_of(train, torch.randint(len(train) - LENGTH, (BATCH,), generator=generator))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    model.eval()
    starts = torch.linspace(0, len(validation) - LENGTH, VALIDATION).long()
    with torch.no_grad():
        measured = torch.stack([loss_of(validation, part) for part in starts.split(BATCH)])
    states = {name: size for name, size in adan_optim.state_bytes(optimizer).items() if name != "step"}
    return {
        "train_loss": torch.stack(losses[-max(steps // 10, 1) :]).mean().item(),
        "validation_loss": measured.mean().item(),
        "validation_accuracy": None,
        "seconds": round(time.perf_counter() - start, 2),
        "state_bytes": sum(states.values()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


# ---- records


def load(path: Path) -> list[dict[str, Any]]:
    """Return the records so far."""
    return [record for _, record in read_lines(path, dict[str, Any])]


def append(path: Path, run: Run, result: dict[str, Any]) -> None:
    """Add a finished run."""
    about = environment()
    where = {key: about[key] for key in ("commit", "python", "cpu", "cuda", "threads")}
    append_line(path, {**asdict(run), **result, **where, "torch": torch.__version__})


def markdown(records: Iterable[dict[str, Any]]) -> str:
    """Return a page with a table for each task, recipe and optimizer."""
    groups: dict[tuple[str, str, str], dict[str, list[dict[str, Any]]]] = {}
    for record in records:
        key = record["task"], record["recipe"], record["optimizer"]
        groups.setdefault(key, {}).setdefault(record["storage"], []).append(record)
    parts = []
    for (task, recipe, optimizer), storages in sorted(groups.items()):
        order = [storage for storage in (*STORAGES, *PURE_BF16) if storage in storages]
        rows = (_row(storage, storages[storage], storages.get(REFERENCE, [])) for storage in order)
        parts += [f"## {task}, {optimizer}", f"`{recipe}`", table(COLUMNS, rows)]
    return page(
        "Small states and the loss they end with",
        "Made by `benchmarks/state_quality.py` from the records next to it, which name commit, machine and "
        "versions. Losses are in nats. The verdict: does the mean validation loss differ from that with "
        "float32 states by no more than the runs with float32 states among themselves (max - min)?",
        *parts,
    )


COLUMNS = (
    *("states", "seeds", "validation loss, mean", "min to max", "difference to float32"),
    *("float32 max - min", "verdict", "training loss, mean", "accuracy, %"),
    *("state, B/parameter", "seconds a run"),
)


def verdict(losses: Sequence[float], reference: Sequence[float]) -> str:
    """Return whether the means differ by no more than the reference's range."""
    if len(losses) < 3 or len(reference) < 3:
        return "fewer than 3 seeds"
    difference = statistics.fmean(losses) - statistics.fmean(reference)
    return "within" if abs(difference) <= max(reference) - min(reference) else "outside"


def _row(storage: str, records: list[dict[str, Any]], reference: list[dict[str, Any]]) -> list[str]:
    def mean(key: str) -> float:
        return statistics.fmean(record[key] for record in records)

    losses, others = ([record["validation_loss"] for record in part] for part in (records, reference))
    compared = storage != REFERENCE and others
    return [
        storage,
        str(len(records)),
        f"{mean('validation_loss'):.4f}",
        f"{min(losses):.4f} to {max(losses):.4f}",
        f"{statistics.fmean(losses) - statistics.fmean(others):+.4f}" if compared else "",
        f"{max(others) - min(others):.4f}" if others else "",
        verdict(losses, others) if compared else "",
        f"{mean('train_loss'):.4f}",
        "" if records[0]["validation_accuracy"] is None else f"{mean('validation_accuracy'):.2f}",
        f"{records[0]['state_bytes'] / records[0]['parameters']:.2f}",
        f"{mean('seconds'):.0f}",
    ]


# ---- the command


def plan(options: argparse.Namespace) -> list[Run]:
    """Return all runs that were asked for, the storages of one seed together."""
    gpt = (
        f"GPT-2 160 x 4, {options.gpt_steps} steps of {BATCH} x {LENGTH} bytes, weight decay 0.02, "
        "lr " + ", ".join(f"{name} {lr:g}" for name, lr in LEARNING_RATES.items())
    )
    runs = []
    for task, optimizer, seed in itertools.product(options.tasks, options.optimizers, options.seeds):
        recipe = " ".join(VISION[task]) if task in VISION else gpt
        pure = PURE_BF16 if options.pure_bf16 and task == "gpt" else ()
        runs += [Run(task, optimizer, storage, seed, recipe) for storage in (*options.storages, *pure)]
    return runs


def train_all(runs: list[Run], path: Path, options: argparse.Namespace) -> int:
    """Do the runs that have no record yet; return how many they were."""
    finished = {Run(**{key: record[key] for key in Run.__dataclass_fields__}) for record in load(path)}
    waiting = [run for run in runs if run not in finished]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tqdm(total=len(runs), initial=len(runs) - len(waiting), unit="run") as bar:
        for run in waiting:
            bar.set_postfix_str(f"{run.task}, {run.optimizer}, {run.storage}, seed {run.seed}")
            if run.task == "gpt":
                result = train_gpt(run, options.gpt_steps, device)
            else:
                result = train_vision(run, options.fashion_mnist, options.runs)
            append(path, run, result)
            bar.update()
    return len(waiting)


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, write the table, and return the exit status."""
    options = read_options(arguments)
    records, written = options.out.with_suffix(".jsonl"), options.out.with_suffix(".md")
    done = ""
    if options.table:
        if not records.exists():
            raise UserError(f"--out {options.out}: {records} does not exist; train without --table first")
    else:
        check(options, "gpt_steps")
        folder = options.fashion_mnist
        if "fashion_mnist" in options.tasks and not (folder and folder.is_dir()):
            raise UserError(
                f"--fashion-mnist {folder}: no such folder; give that of the four IDX files of "
                "zalandoresearch/fashion-mnist, or leave the task out: --tasks digits gpt"
            )
        runs, start = plan(options), time.perf_counter()
        try:
            new = train_all(runs, records, options)
        except KeyboardInterrupt:
            print("interrupted; the same command continues", file=sys.stderr)
            return 130
        took = show_time((time.perf_counter() - start) / 3600)
        done = f"{new} runs done now in {took}, {len(runs) - new} were there already\n"
    text = markdown(load(records))
    write_atomically(written, text + "\n")
    print(f"{as_text(text)}\n{done}records: {records}, table: {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
