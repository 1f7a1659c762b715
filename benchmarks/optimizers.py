"""Time optimizer steps side by side.

Each parameter list is measured in several fresh processes, because the memory pages and the cores that a
process happens to get determine its bandwidth. Within a process, the optimizers work on the same parameters
and gradients, one step each in turn, in rotating order, so that a machine whose speed drifts slows all alike.
If the states of all do not fit in memory together, as many as fit take turns, always with torch's fused AdamW
among them; those that do not fit even alone are named with the bytes that they need. Models are lists of
shapes: there is no forward pass. Two sets of gradients alternate and are assigned before each step, outside
of the timed part, because a step with take_gradients keeps the gradients it was given.

    ms, ns/parameter   time of a step (on CUDA between two events): median over rounds, then over processes
    B/parameter        what a one-pass step must read and write: `one_pass` and `Card` of adan_optim.card
    GB/s               these bytes over that time; if a step makes several passes (foreach), the useful part
                       of its traffic
    of copy, of update GB/s relative to the stream of this name in the same process: on CUDA the copy; on a
                       CPU, where a copy also loads the lines that it overwrites, the update in place
    state              bytes of optimizer state per parameter, counted after the steps
    peak               CUDA only: most memory allocated over two steps, after two steps that made the states;
                       parameters, states and one set of fresh gradients, no activations of a model
    ratio              to torch's fused AdamW: the median over a process's rounds, then over the processes,
                       with the smallest and the largest of them

The streams of the machine, in the same process:

    copy     a = b, 8 bytes an element (12 with the write-allocate of a)
    triad    a = b + s c, 12 bytes an element as STREAM counts (16 with the write-allocate of a)
    update   a = a + s b in place, 12 bytes an element: the access pattern of an optimizer

The last table is the time of a whole step on 400 tensors of 16 elements, with almost no arithmetic: the
overhead of Python and of the launch. "again" repeats one optimizer's step, with the same or with new
gradients; "in turn" steps one optimizer after the other, which evicts each one's data from the caches. A
column is the median; "fastest tenth" is the time that one step in ten stays below: on a shared machine, the
time on a core that nobody else uses.

Examples:
    python benchmarks/optimizers.py --lists ViT-S
    python benchmarks/optimizers.py --design
"""

import argparse

from benchmarks.common import parser

TIMM = {
    "ResNet-50": "resnet50",
    "ResNet-101": "resnet101",
    "ViT-S": "vit_small_patch16_224",
    "ViT-B": "vit_base_patch16_224",
    "ViT-L": "vit_large_patch16_224",
    "Swin-B": "swin_base_patch4_window7_224",
    "Swin-L": "swin_large_patch4_window7_224",
    "ConvNeXt-B": "convnext_base",
    "ConvNeXt-L": "convnext_large",
}
# Layers L and width d; 49,280 tokens, 2,048 positions, tied embeddings, as in sail-sg/Adan's
# fused_adan/README.md: L (12 d^2 + 13 d) + (49280 + 2048 + 2) d = 758,799,360 and 1,313,722,368 parameters.
GPT2 = {"GPT-2 758M": (24, 1536), "GPT-2 1313M": (24, 2048)}
MATRICES = "4 x 4096x4096"
HIDDEN = {  # GPT-2's layers by the name of the list: for optimizers of matrices, and for them alone
    "GPT-2 1x768, hidden matrices": 1,  # on a CPU a step takes seconds with one layer
    "GPT-2 12x768, hidden matrices": 12,
}
LISTS = {
    "cpu": ["ViT-S", "ResNet-50", MATRICES, "ViT-B", next(iter(HIDDEN))],
    "cuda": [*TIMM, *GPT2, MATRICES, *HIDDEN],
}


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    found = parser(__doc__, device=True)
    known = ", ".join(f"'{name}'" for name in LISTS["cuda"])
    names = f"{known}, GPT-2 LAYERSxWIDTH, or any timm model"
    found.add_argument("--lists", nargs="+", metavar="LIST", help=names)
    found.add_argument("--steps", nargs="+", metavar="STEP", help="rows of --design; default: all")
    found.add_argument("--rounds", type=int, default=20)
    found.add_argument("--processes", type=int, help="default: 7, with CUDA 3")
    found.add_argument("--memory", type=float, metavar="GIB", help="default: 90 %% of the free memory")
    found.add_argument("--design", action="store_true", help="print the bytes by design and measure nothing")
    found.add_argument("--worker", metavar="LIST", help="measure one list in this process and print JSON")
    return found.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import gc
import importlib
import itertools
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import adan_optim
from adan_optim.card import STATE_BYTES, one_pass
from benchmarks.common import Step, check, fresh, interleave, machine, made
from repro.errors import UserError
from repro.results import as_text, bullets, page, publish, table
from repro.train.cli import exit_status

Build = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Entry:
    """One row.

    Attributes:
        build: makes the optimizer.
        moved: bytes that a step moves per float32 parameter, by design.
        state: bytes of state per parameter, by design.
        device: the only device type that it runs on; None is any.
        taken: whether the step takes the gradient and leaves None.
        matrices: whether it is for the lists HIDDEN, and for no others.
    """

    build: Build
    moved: float
    state: float
    device: str | None = None
    taken: bool = False
    matrices: bool = False  # for the lists HIDDEN


def ours(
    name: str,
    state_dtype: str | None = None,
    take_gradients: bool = False,
    extra: float = 0,
    optional: int = 0,
    **options: Any,
) -> Entry:
    """Return the entry of an optimizer of ours.

    Args:
        extra: bytes per parameter that these options move besides what the card says.
        optional: states that these options keep besides those of the card.
    """
    card = adan_optim.CARDS[name]
    options = {"fused": True, "weight_decay": 0.02, "state_dtype": state_dtype, **options}
    if take_gradients:
        options["take_gradients"] = True
    kept = state_dtype or "float32"
    more = optional * STATE_BYTES[kept]
    return Entry(
        lambda p: adan_optim.OPTIMIZERS[name](p, **options),
        card.traffic_bytes(kept, take_gradients) + 2 * more + extra,
        card.state_bytes(kept) + more,
        taken=take_gradients,
    )


def theirs(path: str, state: float, device: str | None = None, **options: Any) -> Entry:
    """Return the entry of an optimizer by its import path."""
    module, _, name = path.rpartition(".")
    return Entry(
        lambda p: getattr(importlib.import_module(module), name)(p, **options),
        one_pass(state),
        state,
        device,
    )


class OfficialTraffic(adan_optim.Adan):
    """Our fused step, then the two passes that the official fused Adan makes after its kernel.

    It zeroes the previous gradient (4 bytes written) and subtracts the gradient from it (8 read, 4 written):
    44 + 16 = 60 bytes per parameter. Source: sail-sg/Adan adan.py, `_fused_adan_multi_tensor`. This emulates
    its traffic on a separate list of tensors; it is not its code.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make the step."""
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        loss = super().step(closure)
        if not hasattr(self, "scratch"):
            self.scratch = [torch.empty_like(g) for g in grads]
        torch._foreach_zero_(self.scratch)
        torch._foreach_add_(self.scratch, grads, alpha=-1)
        return loss


ADAMW, ADAN = adan_optim.CARDS["adamw"], adan_optim.CARDS["adan"]
EMULATED = "Adan, official traffic (emulated)"
ENTRIES = {
    "torch AdamW fused": theirs("torch.optim.AdamW", ADAMW.state_bytes(), fused=True),
    "torch AdamW foreach": theirs("torch.optim.AdamW", ADAMW.state_bytes(), foreach=True),
    "apex FusedAdam": theirs("apex.optimizers.FusedAdam", ADAMW.state_bytes(), "cuda"),
    "bitsandbytes AdamW8bit": theirs("bitsandbytes.optim.AdamW8bit", ADAMW.state_bytes("int8")),
    "torchao AdamW8bit": theirs("torchao.optim.AdamW8bit", ADAMW.state_bytes("int8")),
    "AdamW fused": ours("adamw"),
    "AdamW fused, bf16 states": ours("adamw", "bfloat16"),
    "AdamW fused, int8 states": ours("adamw", "int8"),
    "Adan foreach": ours("adan", fused=None, foreach=True),
    EMULATED: Entry(
        lambda p: OfficialTraffic(p, fused=True, weight_decay=0.02),
        ADAN.traffic_bytes() + 16,
        ADAN.state_bytes(),
        "cuda",
    ),
    "Adan fused": ours("adan"),
    "Adan fused, clipped": ours("adan", extra=4, max_grad_norm=1.0),  # the norm reads g
    "Adan fused, taken gradients": ours("adan", take_gradients=True),
    "Adan fused, bf16 states": ours("adan", "bfloat16"),
    "Adan fused, int8 states": ours("adan", "int8"),
    "Adam fused": ours("adam"),
    "Lion fused": ours("lion"),
    "timm Lion": theirs("timm.optim.Lion", 4.0, weight_decay=0.02),
    "Sophia fused": ours("sophia"),
    "Adam-mini fused": ours("adam_mini"),
    "Adam-mini fused, bf16 states": ours("adam_mini", "bfloat16"),
    "LAMB fused": ours("lamb"),
    "timm LAMB": theirs("timm.optim.Lamb", 8.0, weight_decay=0.02),
    "LARS fused": ours("lars", optional=1),  # the momentum
    "timm LARS": theirs("timm.optim.Lars", 4.0, weight_decay=0.02, momentum=0.9),
    "Adafactor fused": ours("adafactor", fused=None),  # tensors of four dimensions take the foreach path
    "torch Adafactor": theirs("torch.optim.Adafactor", 0.0, foreach=True),
    "transformers Adafactor": theirs("transformers.optimization.Adafactor", 0.0),
}
ENTRIES |= {  # of the others, which have nothing to be compared with
    row: ours(name)
    for name, card in adan_optim.CARDS.items()
    if "fused" in card.paths and (row := f"{card.title} fused") not in ENTRIES
}
ENTRIES |= {  # the first pass reads the gradient and the states
    f"{card.title} fused, caution": ours(card.name, extra=4 + card.state_bytes(), caution=True)
    for card in (ADAMW, ADAN, adan_optim.CARDS["lion"])
}
ENTRIES |= {
    name: replace(entry, matrices=True)
    for name, entry in {
        "Muon": ours("muon", fused=None),
        "Muon, int8 states": ours("muon", "int8", fused=None),
        "torch Muon": theirs("torch.optim.Muon", 4.0),
        "timm Muon": theirs("timm.optim.Muon", 4.0),
        "SOAP": ours("soap", fused=None),
        "pytorch_optimizer SOAP": theirs("pytorch_optimizer.SOAP", ADAMW.state_bytes()),
        "Shampoo": ours("shampoo", fused=None),
    }.items()
}
BASELINE = "torch AdamW fused"

PROCESSES = {"cpu": 7, "cuda": 3}
STREAMS = {"copy": 8, "triad": 12, "update": 12}  # bytes an element
REFERENCE = {"cpu": "update", "cuda": "copy"}  # the stream that GB/s are compared with
STREAM_ELEMENTS = 2**26  # at most; far beyond any cache
OVERHEAD = ("again", "again, new gradients", "in turn, new gradients")
VISITS = 10  # per optimizer, so that a few slow seconds of the machine hit all of them alike


def shapes(name: str) -> list[torch.Size]:
    """Return the parameter shapes of a model, without allocating its memory."""
    if name == MATRICES:
        return [torch.Size((4096, 4096))] * 4
    if name in HIDDEN:
        d = 768
        layer = (d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)
        return [torch.Size(size) for size in layer] * HIDDEN[name]
    size = gpt2_size(name)
    with torch.device("meta"):
        if size is not None:
            from transformers import GPT2Config, GPT2LMHeadModel

            sizes = dict(vocab_size=49280, n_positions=2048, n_layer=size[0], n_embd=size[1])
            config = GPT2Config(**sizes, n_head=1, bos_token_id=0, eos_token_id=0)  # heads change no shape
            return [p.shape for p in GPT2LMHeadModel(config).parameters()]
        import timm

        return [p.shape for p in timm.create_model(TIMM.get(name, name)).parameters()]


def gpt2_size(name: str) -> tuple[int, int] | None:
    """Return layers and width of a GPT-2 by its name in `GPT2`, or by its size, as in "GPT-2 12x768"."""
    size = re.fullmatch(r"GPT-2 ([1-9]\d*)x([1-9]\d*)", name)
    return (int(size[1]), int(size[2])) if size else GPT2.get(name)


def check_list(name: str) -> None:
    """Raise UserError for a name that `shapes` does not know."""
    import timm

    if name not in LISTS["cuda"] and gpt2_size(name) is None and not timm.is_model(name):
        raise UserError(f"--lists {name}: neither a timm model nor one of {', '.join(LISTS['cuda'])}")


def make(sizes: list[torch.Size], device: str, seed: int = 0) -> list[torch.nn.Parameter]:
    """Return parameters of these shapes, with gradients of about the size that they have in training."""
    generator = torch.Generator(device).manual_seed(seed)
    params = [
        torch.nn.Parameter(torch.randn(size, generator=generator, device=device) * 0.02) for size in sizes
    ]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, device=device) * 1e-3
    return params


def memory(device: str) -> int:
    """Return the free bytes on the device."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    free = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(free.group(1)) * 1024 if free else sys.maxsize


def present(device: str, only: list[str], matrices: bool = False) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the entries of these names that work on the device, and why the others do not.

    Args:
        matrices: those for the lists HIDDEN, and the baseline, instead of all others.
    """
    works, absent = {}, {}
    for key, entry in ENTRIES.items():
        if key not in only or (key != BASELINE and entry.matrices != matrices):
            continue
        if entry.device not in (None, device):
            absent[key] = f"{entry.device} only"
            continue
        try:  # a broken library must not keep the others from being measured
            entry.build(make([torch.Size((64, 128))], device)).step()
            works[key] = entry
        except Exception as error:
            absent[key] = (str(error).splitlines() or [type(error).__name__])[0]
    return works, absent


def parties(entries: dict[str, Entry], count: int, budget: float) -> tuple[list[list[str]], dict[str, float]]:
    """Return the groups of optimizers that take turns, and the bytes that each one that fits in none needs.

    A group has the baseline, and fits into memory with parameters, two sets of gradients, the states of its
    members, 8 bytes per parameter of temporaries (of a foreach step or an emulation), and the stream arrays.

    Args:
        count: number of float32 parameters.
        budget: bytes of memory.
    """
    fixed = count * (4 + 2 * 4 + 8) + 3 * 4 * min(count, STREAM_ELEMENTS)
    need = {key: count * entry.state for key, entry in entries.items()}
    free = budget - fixed - need[BASELINE]
    if free < 0:
        return [], {BASELINE: fixed + need[BASELINE]}
    misfits = {key: fixed + need[BASELINE] + need[key] for key in entries if need[key] > free}
    found, left = [[BASELINE]], free
    for key in entries:
        if key == BASELINE or key in misfits:
            continue
        if need[key] > left:
            found, left = [*found, [BASELINE]], free
        found[-1].append(key)
        left -= need[key]
    return found, misfits


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of all state tensors, also of optimizers with their own tensor classes."""
    if isinstance(optimizer, adan_optim.Optimizer):
        return sum(adan_optim.state_bytes(optimizer).values())

    def plain(x: Any) -> list[Tensor]:
        if not isinstance(x, Tensor):
            return []
        if not hasattr(x, "__tensor_flatten__"):
            return [x]
        return [inner for name in x.__tensor_flatten__()[0] for inner in plain(getattr(x, name))]

    tensors = [t for state in optimizer.state.values() for value in state.values() for t in plain(value)]
    return sum({t.data_ptr(): t.numel() * t.itemsize for t in tensors}.values())  # a table may be shared


def peak_bytes(params: list[torch.nn.Parameter], build: Build) -> int:
    """Return the most CUDA memory allocated over two steps of an optimizer that has its states."""
    gc.collect()  # the previous optimizer must not count
    optimizer = build(params)
    for i in range(4):
        if i == 2:
            torch.cuda.reset_peak_memory_stats()
        for p in params:
            p.grad = torch.ones_like(p)  # a new tensor, as from a backward pass
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated()


def bench_list(name: str, device: str, rounds: int, budget: float, only: list[str]) -> dict[str, Any]:
    """Measure the optimizers of these names on one parameter list, in this process."""
    sizes = shapes(name)
    count = sum(size.numel() for size in sizes)
    entries, absent = present(device, only, name in HIDDEN)
    groups, misfits = parties(entries, count, budget)
    rows: dict[str, dict[str, float]] = {}
    about = {"tensors": len(sizes), "parameters": count, "rounds": rounds, "absent": absent}
    if not groups:
        return {**about, "misfits": misfits, "rows": rows}
    params = make(sizes, device)
    peaks = {}
    if device == "cuda":
        for p in params:
            p.grad = None
        for key in dict.fromkeys(itertools.chain(*groups)):
            if key != EMULATED:  # its scratch list is not part of the original's memory
                peaks[key] = peak_bytes(params, entries[key].build)
    grads = [[torch.randn_like(p) * 1e-3 for p in params] for _ in range(2)]

    def hand_over(i: int) -> None:
        for p, g in zip(params, grads[i % 2], strict=True):
            p.grad = g

    a, b, c = (torch.ones(min(count, STREAM_ELEMENTS), device=device) for _ in range(3))
    streams: dict[str, Step] = {
        "copy": lambda: a.copy_(b),
        "triad": lambda: torch.add(b, c, alpha=0.5, out=a),
        "update": lambda: a.add_(b, alpha=1e-9),
    }
    for members in groups:
        optimizers = {key: entries[key].build(params) for key in members}
        steps = {key: optimizer.step for key, optimizer in optimizers.items()} | streams
        times = interleave(steps, rounds, name, device, hand_over)
        medians = {key: statistics.median(series) for key, series in times.items()}
        stream = STREAMS[REFERENCE[device]] * a.numel() / medians[REFERENCE[device]]
        for key, median in medians.items():
            elements, bytes_each = (
                (a.numel(), STREAMS[key]) if key in STREAMS else (count, entries[key].moved)
            )
            speed = bytes_each * elements / median
            row = {
                "ms": median * 1e3,
                "ns_per_parameter": median / elements * 1e9,
                "bytes_per_parameter": bytes_each,
                "GB_per_s": speed / 1e9,
                f"of_{REFERENCE[device]}": speed / stream,
            }
            if key in entries:
                ratios = (x / y for x, y in zip(times[key], times[BASELINE], strict=True))
                row["state_bytes_per_parameter"] = state_bytes(optimizers[key]) / count
                row["ratio"] = statistics.median(ratios)
            if key in peaks:
                row["peak_GiB"] = peaks[key] / 2**30
            rows.setdefault(key, row)  # the first group speaks for the members of several
        del optimizers, steps
        gc.collect()  # make room for the states of the next group
    order = [*entries, *STREAMS]
    return {**about, "misfits": misfits, "rows": {key: rows[key] for key in order if key in rows}}


def bench_in_processes(
    name: str, device: str, rounds: int, processes: int, budget: float, steps: list[str]
) -> dict[str, Any]:
    """Return the medians over fresh processes, and the ratio of each process."""
    command = [__file__, "--worker", name, "--device", device, "--rounds", str(rounds)]
    command += ["--memory", str(budget / 2**30), "--steps", *steps]
    runs = fresh([command] * processes, name)
    rows = {}
    for key, first in runs[0]["rows"].items():
        seen = [run["rows"][key] for run in runs]
        rows[key] = {column: statistics.median(row[column] for row in seen) for column in first}
        if "ratio" in first:
            rows[key]["ratios"] = [row["ratio"] for row in seen]
    return {**runs[0], "processes": processes, "rows": rows}


def bench_overhead(device: str, rounds: int, only: list[str]) -> dict[str, dict[str, float]]:
    """Return microseconds of a step on 400 tensors of 16 elements, over VISITS times as many rounds."""
    params = make([torch.Size((16,))] * 400, device)

    def new(i: int) -> None:
        for p in params:
            p.grad = torch.randn_like(p)

    entries, _ = present(device, only)
    steps = {key: entry.build(params).step for key, entry in entries.items()}
    times: dict[str, dict[str, list[float]]] = {key: defaultdict(list) for key in entries}
    again, fresh, in_turn = OVERHEAD
    for _ in range(VISITS):
        for key, step in steps.items():
            if not entries[key].taken:  # it leaves no gradient for another step
                new(0)
                times[key][again] += interleave({key: step}, rounds, key, device)[key]
            times[key][fresh] += interleave({key: step}, rounds, key, device, new)[key]
        for key, series in interleave(steps, rounds, "in turn", device, new).items():
            times[key][in_turn] += series
    rows: dict[str, dict[str, float]] = {key: {} for key in entries}
    for key, columns in times.items():
        for column, series in columns.items():
            rows[key][column] = 1e6 * statistics.median(series)
            rows[key][f"{column}, fastest tenth"] = 1e6 * sorted(series)[len(series) // 10]
    return rows


def design() -> str:
    """Return the table of the bytes per parameter that each row moves and keeps, by the formula alone."""
    bound = {key: entry for key, entry in ENTRIES.items() if not entry.matrices}  # by memory, not by products
    rows = [(key, 4, entry.moved, entry.state) for key, entry in bound.items()]
    bf16 = ADAN.state_bytes("bfloat16")
    rows += [
        ("Adan fused, bf16 parameters and states", 2, one_pass(bf16, 2), bf16),
        ("the same, Kahan or split", 2, one_pass(bf16 + 2, 2), bf16 + 2),  # 2 bytes beside the parameter
    ]
    cells = (
        [key, f"{moved:.4g}", f"{state:.4g}", f"{2 * parameter + state:.4g}"]
        for key, parameter, moved, state in rows
    )
    header = ["step", "moved, B/parameter", "state, B/parameter", "parameter + gradient + state"]
    return table(header, cells)


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "ms": ("ms", "{:.2f}".format),
    "ns_per_parameter": ("ns/parameter", "{:.3f}".format),
    "bytes_per_parameter": ("B/parameter", "{:.4g}".format),
    "GB_per_s": ("GB/s", "{:.1f}".format),
    "of_copy": ("of copy", "{:.0%}".format),
    "of_update": ("of update", "{:.0%}".format),
    "state_bytes_per_parameter": ("state, B/parameter", "{:.2f}".format),
    "peak_GiB": ("peak, GiB", "{:.2f}".format),
    "ratio": ("ratio", "{:.2f}".format),
    "ratios": ("over processes", lambda ratios: f"{min(ratios):.2f} to {max(ratios):.2f}"),
}


def markdown(result: dict[str, Any]) -> str:
    """Return the page of a result."""
    about = result["machine"]
    parts: list[str] = []
    absent: dict[str, str] = {}
    for name, run in result["lists"].items():
        absent |= run["absent"]
        size = f"{run['tensors']} tensors, {run['parameters'] / 1e6:.1f} M parameters"
        parts.append(f"## {name}: {size}, {run['processes']} processes of {run['rounds']} rounds")
        columns = [column for column in COLUMNS if any(column in row for row in run["rows"].values())]
        header = ["step", *(COLUMNS[column][0] for column in columns)]
        cells = (
            [key, *(COLUMNS[column][1](row[column]) if column in row else "" for column in columns)]
            for key, row in run["rows"].items()
        )
        parts += [table(header, cells)] if columns else []
        for key, bytes_ in run["misfits"].items():
            need = f"needs {bytes_ / 2**30:.1f} GiB, there are {about['memory_GiB']:.1f} GiB"
            parts.append(f"Not measured, {key}: {need}." if run["rows"] else f"Not measured: {key} {need}.")
    columns = [f"{column}{tenth}" for column in OVERHEAD for tenth in ("", ", fastest tenth")]
    cells = (
        [key, *(f"{row[column]:.0f}" if column in row else "" for column in columns)]
        for key, row in result["overhead_us"].items()
    )
    return page(
        f"Optimizer steps on the {'GPU' if about['device'] == 'cuda' else 'CPU'}",
        f"{made(about, about['path'])} float32 parameters, seed 0, medians of interleaved rounds; `ratio` is "
        "to torch's fused AdamW in the same process. `--help` explains the columns.",
        *parts,
        bullets(f"Not measured, {key}: {reason}" for key, reason in absent.items()),
        "## 400 tensors of 16 elements, microseconds",
        table(["step", *columns], cells),
    )


@exit_status
def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write, and return the exit status."""
    options = read_options(arguments)
    if options.design:
        print(as_text(design()))
        return 0
    check(options, "rounds", "processes")
    device, steps = options.device, [BASELINE, *(options.steps or ENTRIES)]
    for step in steps:
        if step not in ENTRIES:
            raise UserError(f"--steps '{step}': not one of {', '.join(ENTRIES)}")
    lists = [options.worker] if options.worker else options.lists or LISTS[device]
    for name in lists:
        check_list(name)
    budget = options.memory * 2**30 if options.memory is not None else 0.9 * memory(device)
    if options.worker:
        print(json.dumps(bench_list(options.worker, device, options.rounds, budget, steps)))
        return 0
    processes = options.processes or PROCESSES[device]
    result = {
        "machine": machine(device, arguments) | {"memory_GiB": budget / 2**30},
        "lists": {
            name: bench_in_processes(name, device, options.rounds, processes, budget, steps) for name in lists
        },
        "overhead_us": bench_overhead(device, 40, steps),
    }
    publish(result, markdown(result), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
