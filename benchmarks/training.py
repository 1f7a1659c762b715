"""Time whole training steps side by side.

Models are those of the recipes, vision and language, on the data that come with them. One process; one model
for each contestant, all from the same weights, all trained on the same batches, which are in memory before
the clock starts. The contestants take turns, in another order in every round, so that a machine whose speed
drifts slows all alike. A turn is one step on a CPU. On CUDA, where the device must be idle when the clock is
read, it is 20, and forward and loss are in bfloat16 (autocast). The time of a step is from receiving a batch
to asking for the next one; a ratio is the median of the ratios in the rounds, with a 95% interval of that
median. There is no dropout, which would give each contestant another loss.

Without --optimizers: three training loops with our fused Adan.

    bare    forward and loss as one would write them, backward, step, zero_grad, and nothing else
    timm    what train_one_epoch of timm's train.py does at each step, made of parts of timm: meters, a
            scheduler that is updated at every step, the loss fetched at every step
    ours    repro.train.trainer.Trainer with the model's recipe and everything that it does between two
            evaluations: schedule, accelerate's wrappers, records in metrics.jsonl, the progress bar

timm's loop and ours log once per turn; the default of both is every 50 steps. The losses of all must agree,
otherwise they did not do the same work; the largest difference is in the result.

With --optimizers: the bare loop with each optimizer.

    .../s, TFLOP/s      images or tokens per second, from the median; FLOPs of forward and backward, counted
                        by torch.utils.flop_counter
    optimizer, share    time of optimizer.step, and its part of the step, in further steps of the bare loop
    B/parameter         what a one-pass step must read and write, as in optimizers.py; a foreach step
                        makes many passes, and moves several times as much
    state               bytes of optimizer state per parameter, counted after the steps
    peak                CUDA only: most memory allocated over two steps with one optimizer alone, after two
                        steps that made its states; with activations and the synthetic images

Examples:
    python benchmarks/training.py --quick --rounds 5
    python benchmarks/training.py --optimizers --models deit_small_patch16_224 --out training
"""

import argparse

from benchmarks.common import parser


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    found = parser(__doc__, device=True)
    found.add_argument("--optimizers", action="store_true", help="optimizers in the bare loop, not loops")
    found.add_argument("--models", nargs="+", metavar="MODEL", help="of training_cases.py, or any of timm's")
    found.add_argument("--batch", type=int, help="samples; default: a usual number for the device")
    words = "of the recipes' command lines: amp=bf16, compile=true, for images channels_last=true"
    found.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help=words)
    found.add_argument("--rounds", type=int, default=40)
    found.add_argument("--quick", action="store_true", help="models and batches for tests")
    return found.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import functools
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import adan_optim
from benchmarks.common import check, machine, made, seconds
from benchmarks.optimizers import EMULATED, ENTRIES, state_bytes
from benchmarks.training_cases import MODELS, QUICK, prepare
from benchmarks.training_loops import Bench, bare_loop, run_ours, timm_loop
from repro.results import bullets, page, publish, table
from repro.train.cli import exit_status

ALONE = 4  # turns of steps whose optimizer is timed
BASELINE = "torch AdamW fused"
OPTIMIZERS = {
    BASELINE: "torch.optim.AdamW(fused=True)",
    "Adan foreach": "adan_optim.Adan(foreach=True): every operation of the update is a pass over memory, as "
    "in the official optimizer without its CUDA extension",
    EMULATED: "adan_optim.Adan(fused=True), then the two passes that the official fused Adan makes after its "
    "multi-tensor kernel: its traffic of 60 bytes a parameter, not its code",
    "Adan fused": "adan_optim.Adan(fused=True): one pass",
    "Adan fused, bf16 states": "the same with state_dtype='bfloat16', rounded stochastically",
    "Adan fused, int8 states": "the same with state_dtype='int8', in blocks",
}


def bench_loops(bench: Bench) -> dict[str, Any]:
    """Measure the three loops."""
    models = {key: bench.model() for key in ("bare", "timm")}
    bare, timm = (adan_optim.build_optimizer(model, bench.config.optimizer) for model in models.values())
    losses: dict[str, list[Any]] = {"bare": [], "timm": []}
    loops = {
        "bare": bare_loop(bench, models["bare"], bare.step, bare.zero_grad, losses["bare"]),
        "timm": timm_loop(bench, models["timm"], timm, losses["timm"]),
    }
    times: dict[str, list[float]] = {"bare": [], "timm": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        losses["ours"] = run_ours(bench, Path(folder), loops, times)
    series = {key: torch.tensor(values) for key, values in losses.items()}
    difference = max(float((x / series["bare"] - 1).abs().max()) for x in series.values())
    result = about(bench) | {
        "loss_difference": difference,
        "optimizer": optimizer_alone(bench, models["bare"], bare),
    }
    rows = {key: row(result, values, times["bare"]) for key, values in times.items()}
    return {**result, "ours_to_timm": ratio(times["ours"], times["timm"]), "rows": rows}


def bench_optimizers(bench: Bench) -> dict[str, Any]:
    """Measure the bare loop with each optimizer."""
    entries = {key: ENTRIES[key] for key in OPTIMIZERS if ENTRIES[key].device in (None, bench.device)}
    peaks = {}
    if bench.device == "cuda":
        for key in entries.keys() - {EMULATED}:  # its scratch list is not part of the original's memory
            model = bench.model()
            peaks[key] = peak_bytes(bench, model, entries[key].build([*model.parameters()]))
    models = {key: bench.model() for key in entries}
    optimizers = {key: entry.build([*models[key].parameters()]) for key, entry in entries.items()}
    loops = {
        key: bare_loop(bench, models[key], optimizer.step, optimizer.zero_grad, [])
        for key, optimizer in optimizers.items()
    }
    times: dict[str, list[float]] = {key: [] for key in entries}
    for _ in bench.turns(loops, times):
        pass
    result, rows = about(bench), {}
    for key, entry in entries.items():
        alone = optimizer_alone(bench, models[key], optimizers[key])
        rows[key] = row(result, times[key], times[BASELINE]) | {
            "optimizer": alone,
            "bytes_per_parameter": entry.moved,
            "state_bytes_per_parameter": state_bytes(optimizers[key]) / result["parameters"],
            "peak_GiB": peaks[key] / 2**30 if key in peaks else None,
        }
    return {**result, "absent": [key for key in OPTIMIZERS if key not in entries], "rows": rows}


def about(bench: Bench) -> dict[str, Any]:
    """Return the description of a measurement."""
    return {
        "unit": bench.task.samples,
        "batch": bench.config.batch_size,
        "per_sample": bench.task.per_sample,
        "amp": bench.config.amp,
        "compile": bench.config.compile,
        "channels_last": getattr(bench.config, "channels_last", False),
        "rounds": bench.rounds,
        "steps_of_a_turn": bench.steps,
        "parameters": sum(p.numel() for p in bench.initial.parameters()),
        "flops": bench.flops(),
    }


def row(about: dict[str, Any], times: list[float], baseline: list[float]) -> dict[str, Any]:
    """Return the row of a contestant, from the seconds of its steps."""
    median = statistics.median(times)
    return {
        "ms": median * 1e3,
        "per_s": about["batch"] * about["per_sample"] / median,
        "tflops": about["flops"] and about["flops"] / median / 1e12,
        "ratio": ratio(times, baseline),
    }


def ratio(times: list[float], baseline: list[float]) -> list[float]:
    """Return the median of the ratios in the rounds, and its 95% interval by order statistics."""
    ratios = sorted(x / y for x, y in zip(times, baseline, strict=True))
    count, rank, tail = len(ratios), 0, 0.0
    while (tail := tail + math.comb(count, rank) / 2**count) <= 0.025:
        rank += 1
    rank = max(rank, 1)  # with fewer than six rounds, the extremes, which cover less than 95%
    return [statistics.median(ratios), ratios[rank - 1], ratios[count - rank]]


def optimizer_alone(bench: Bench, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the milliseconds of optimizer.step, and its share of a step of the bare loop: medians."""
    alone: list[float] = []
    whole: list[float] = []

    def step() -> None:
        alone.append(seconds(optimizer.step, bench.device))

    loop = bare_loop(bench, model, step, optimizer.zero_grad, [])
    next(loop)
    for i in range(ALONE * bench.steps):
        batch = bench.batch(i)
        whole.append(seconds(functools.partial(loop.send, batch), bench.device))
    shares = [x / y for x, y in zip(alone, whole, strict=True)]
    return {"ms": statistics.median(alone) * 1e3, "share": statistics.median(shares)}


def peak_bytes(bench: Bench, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Return the most CUDA memory allocated over two steps with an optimizer that has its states."""
    loop = bare_loop(bench, model, optimizer.step, optimizer.zero_grad, [])
    next(loop)
    for i in range(4):
        if i == 2:
            torch.cuda.reset_peak_memory_stats()
        loop.send(bench.batch(i))
    return torch.cuda.max_memory_allocated()


def markdown(result: dict[str, Any]) -> str:
    """Return the page of a result."""
    about = result["machine"]
    what = "optimizers in the bare loop" if result["optimizers"] else "three loops"
    parts = []
    for name, run in result["models"].items():
        turn = "" if run["steps_of_a_turn"] == 1 else f" of {run['steps_of_a_turn']} steps"
        size = "" if run["per_sample"] == 1 else f" sequences of {run['per_sample']}"
        parts += [
            f"## {name}: {run['parameters'] / 1e6:.1f} M parameters, "
            f"{run['batch']}{size} {run['unit']}, "
            f"{'float32' if run['amp'] == 'no' else run['amp']}"
            f"{''.join(f', {key}' for key in ('compile', 'channels_last') if run.get(key))}, "
            f"{run['rounds']} rounds{turn}",
            *(optimizers_table if result["optimizers"] else loops_table)(run),
        ]
    return page(
        f"Training steps on the {'GPU' if about['device'] == 'cuda' else 'CPU'}: {what}",
        f"{made(about, 'Adan: ' + about['path'])} Seed 0, medians of interleaved rounds. `--help` explains "
        "contestants and columns.",
        *parts,
        bullets(f"{key}: {text}." for key, text in result["optimizers"].items()),
    )


def loops_table(run: dict[str, Any]) -> list[str]:
    """Return the table of the three loops with one model, and the text below it."""
    cells = ([key, *cells_of(values)] for key, values in run["rows"].items())
    alone = run["optimizer"]
    return [
        table(["loop", "ms", f"{run['unit']}/s", "TFLOP/s", "to bare (95%)"], cells),
        f"Ours to timm's structure: {shown(run['ours_to_timm'])}. "
        f"Losses agree to {run['loss_difference']:.1e}. "
        f"The optimizer takes {alone['ms']:.1f} ms of a step of the bare loop, {alone['share']:.2%}.",
    ]


def optimizers_table(run: dict[str, Any]) -> list[str]:
    """Return the table of the optimizers with one model, and the text below it."""
    header = ["optimizer", "ms", f"{run['unit']}/s", "TFLOP/s", "ratio (95%)", "optimizer, ms", "share"]
    header += ["B/parameter", "state, B/parameter", "peak, GiB"]
    cells = (
        [
            key,
            *cells_of(values),
            f"{values['optimizer']['ms']:.2f}",
            f"{values['optimizer']['share']:.2%}",
            f"{values['bytes_per_parameter']:.4g}",
            f"{values['state_bytes_per_parameter']:.2f}",
            "" if values["peak_GiB"] is None else f"{values['peak_GiB']:.2f}",
        ]
        for key, values in run["rows"].items()
    )
    return [table(header, cells), *(f"Not here: {key}." for key in run["absent"])]


def cells_of(values: dict[str, Any]) -> list[str]:
    """Return the cells that both tables have."""
    tflops = "" if values["tflops"] is None else f"{values['tflops']:.4g}"
    return [f"{values['ms']:.1f}", f"{values['per_s']:.4g}", tflops, shown(values["ratio"])]


def shown(ratio: list[float]) -> str:
    """Return a ratio and its interval as text."""
    middle, low, high = ratio
    return f"{middle:.4f} ({low:.4f} to {high:.4f})"


@exit_status
def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write, and return the exit status."""
    options = read_options(arguments)
    check(options, "rounds")
    more = options.set + ([] if options.batch is None else [f"batch_size={options.batch}"])
    measure = bench_optimizers if options.optimizers else bench_loops
    result = {
        "machine": machine(options.device, arguments),
        "optimizers": OPTIMIZERS if options.optimizers else {},
        "models": {
            name: measure(prepare(name, options.device, options.quick, options.rounds, more))
            for name in options.models or (QUICK if options.quick else MODELS)
        },
    }
    publish(result, markdown(result), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
