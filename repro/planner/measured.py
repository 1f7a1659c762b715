"""Compare predicted memory with that of real training on this machine."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from repro.ledger import rows
from repro.planner import footprint, plan
from repro.planner.footprint import Measured
from repro.planner.plan import Job, Machine
from repro.results import table

# --measure without a row trains these models: small, but larger than everything else in the process.
_SMALL = ["amp=no", "batch_size=4", "gradient_accumulation_steps=2", "data.sequence_length=256"]
_SMALL += ["tokenizer.vocab_size=16384", "model.vocab_size=16384"]
_GPT2 = [*_SMALL, "model.n_layer=6", "model.n_embd=512", "model.n_head=8"]
_LLAMA = [*_SMALL, "model.num_hidden_layers=6", "model.hidden_size=512", "model.intermediate_size=1408"]
_LLAMA += ["model.num_attention_heads=8", "model.num_key_value_heads=8", "fsdp=false"]
_MOE = [*_SMALL, "model.num_hidden_layers=4", "model.hidden_size=256", "model.intermediate_size=1024"]
_MOE += ["model.num_attention_heads=4", "model.num_key_value_heads=4"]
AGAIN = ["gradient_checkpointing=true"]
Case = tuple[str, Sequence[str], str]  # row, overrides, optimizer ("": the row's own)
CASES: list[Case] = [
    *(
        ("adam_mini/gpt2_small", _GPT2, name)
        for name in ("adamw", "adan", "adan-bfloat16", "adan-int8", "adam_mini", "adamw8bit")
    ),
    ("adam_mini/gpt2_small", [*_GPT2, *AGAIN], "adamw"),
    ("adam_mini/llama_1b", _LLAMA, "adan"),
    ("adam_mini/llama_1b", [*_LLAMA, *AGAIN], "adan"),
    ("adam_mini/llama_1b", _LLAMA, "adam_mini"),
    ("moe/8x0.1b_10b_adan", _MOE, "adan"),
    ("moe/8x0.1b_10b_adan", [*_MOE, *AGAIN], "adan"),
]
TOLERANCE = 0.1  # relative


@dataclass(frozen=True)
class Compared:
    """Predictions next to measurements."""

    parts: list[str]  # of a page: two tables and a closing line
    found: list[dict[str, Any]]  # the numbers
    off: int  # number of cases whose prediction is off


def compare(cases: Sequence[Case]) -> Compared:
    """Train every case for a few steps. A prediction is off if its relative error exceeds TOLERANCE."""
    device = "CUDA allocator" if torch.cuda.is_available() else "resident set"
    head = ["row", "what differs", "optimizer", "predicted, MB", "tensors, MB", f"{device}, MB", "off by"]
    lines, found, off = [], [], 0
    for row, overrides, name in tqdm(cases, unit="case", leave=False, disable=None):
        predicted, measured = one(row, overrides, name)
        difference = predicted.total() / measured.memory - 1
        off += abs(difference) > TOLERANCE
        what = "gradient checkpointing" if set(AGAIN) <= set(overrides) else ""
        numbers = [predicted.total(), measured.kinds.total(), measured.memory]
        shown = [f"{x / 1e6:.1f}" for x in numbers]
        lines.append([row, what, name or "its own", *shown, f"{difference:+.1%}"])
        tqdm.write("  ".join(lines[-1]))
        kinds = {kind: [predicted[kind], measured.kinds[kind]] for kind in footprint.KINDS}
        record = {"row": row, "overrides": overrides, "optimizer": name, "bytes": kinds}
        found.append(record | {"predicted": predicted.total(), "measured": measured.memory})
    by_kind = (
        [str(i), *(f"{a / 1e6:.1f} : {b / 1e6:.1f}" for a, b in record["bytes"].values())]
        for i, record in enumerate(found, 1)
    )
    parts = [table(head, lines), table(["case", *(f"{kind}, MB" for kind in footprint.KINDS)], by_kind)]
    return Compared([*parts, f"{len(found) - off} of {len(found)} within {TOLERANCE:.0%}"], found, off)


def one(row: str, overrides: Sequence[str], name: str) -> tuple[Counter[str], Measured]:
    """Return the predicted bytes of a case, by kind, and the measured ones."""
    task = job(row, overrides, name)
    predicted = plan.memory(task, Machine("H100" if torch.cuda.is_available() else None))
    with _exact_allocation():
        pool = multiprocessing.get_context("spawn").Pool(1)
    with pool:
        return predicted, pool.apply(_measure, (row, overrides, name))


def job(row: str, overrides: Sequence[str], name: str) -> Job:
    """Return the job of a row, with an optimizer of configs/optimizer unless `name` is empty."""
    task = plan.job(rows.load(row, overrides))
    return replace(task, config={**task.config, "optimizer": plan.optimizer(name)}) if name else task


def _measure(row: str, overrides: Sequence[str], name: str) -> Measured:
    task = job(row, overrides, name)
    size = task.micro_batch(1)
    task.model()  # import its modules before memory is measured
    return footprint.measure(lambda: task.step(task.model(real=True), size), task.config["optimizer"])


@contextmanager
def _exact_allocation() -> Iterator[None]:
    """Make processes started in this block return freed memory to the system at once."""
    key, before = "MALLOC_MMAP_THRESHOLD_", os.environ.get("MALLOC_MMAP_THRESHOLD_")
    os.environ[key] = str(1 << 16)  # bytes; glibc maps each larger block by itself
    try:
        yield
    finally:
        os.environ.pop(key)
        if before is not None:
            os.environ[key] = before
