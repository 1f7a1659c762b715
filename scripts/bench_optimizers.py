"""Times optimizer steps side by side: `python scripts/bench_optimizers.py [--out results/bench/optimizers]`.

Each parameter list is measured in several fresh processes, because the memory pages and the cores that a
process happens to get decide its bandwidth. Within one, all optimizers work on the same parameters and
gradients, one step each in turn, the order rotating, so that a machine whose speed drifts slows all of them
alike. `ratio` is to torch's fused AdamW: the median over a process's rounds; then the median, the least and
the greatest over the processes. The other columns are medians: nanoseconds per parameter, and gigabytes per
second by the byte count of a one-pass step, beside what the machine streams in the same process:

    triad    a = b + s c, 12 bytes an element as STREAM counts (16 with the write-allocate of a)
    update   a = a + s b in place, 12 bytes an element: the access pattern of an optimizer

The last table is the time of a whole step on 400 tensors of 16 elements, where there is next to no
arithmetic: the overhead of Python and of the launch. "again" repeats one optimizer's step, with the same or
with new gradients; "in turn" steps the optimizers one after the other, which empties the caches in between.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from tqdm import tqdm

import optim

Step = Callable[[], Any]

OPTIMIZERS: dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
    "torch AdamW fused": lambda p: torch.optim.AdamW(p, fused=True),
    "torch AdamW foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "AdamW fused": lambda p: optim.AdamW(p, fused=True),
    "Adan fused": lambda p: optim.Adan(p, fused=True, weight_decay=0.02),
    "Adan foreach": lambda p: optim.Adan(p, foreach=True, weight_decay=0.02),
    "Adan fused, clipped": lambda p: optim.Adan(p, fused=True, weight_decay=0.02, max_grad_norm=1.0),
}
BASELINE = "torch AdamW fused"
# Bytes per float32 parameter of a one-pass step: reads and writes of p, g and the states.
BYTES = {
    "torch AdamW": 28,
    "AdamW": optim.CARDS["adamw"].traffic_bytes(),
    "Adan": optim.CARDS["adan"].traffic_bytes(),
}


def shapes(name: str) -> list[torch.Size]:
    """Parameter shapes of a timm model, or of four large matrices."""
    if name == "4 x 4096x4096":
        return [torch.Size((4096, 4096))] * 4
    with torch.device("meta"):
        return [p.shape for p in timm.create_model(name).parameters()]


def make(sizes: list[torch.Size], seed: int = 0) -> list[torch.nn.Parameter]:
    """Parameters with gradients of about the size that training gives."""
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(size, generator=generator) * 0.02) for size in sizes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) * 1e-3
    return params


def interleave(
    steps: dict[str, Step], rounds: int, title: str, before: Step = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each step in each round; three rounds of warm-up are left out."""
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in tqdm(range(rounds + 3), desc=title, disable=not sys.stderr.isatty()):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            before()
            start = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - start)
    return {name: series[3:] for name, series in times.items()}


def bench_list(name: str, rounds: int) -> dict[str, Any]:
    """All optimizers on one parameter list."""
    params = make(shapes(name))
    count = sum(p.numel() for p in params)
    steps: dict[str, Step] = {key: build(params).step for key, build in OPTIMIZERS.items()}
    a, b, c = (torch.ones(count) for _ in range(3))
    steps["triad"] = lambda: torch.add(b, c, alpha=0.5, out=a)
    steps["update"] = lambda: a.add_(b, alpha=1e-9)
    times = interleave(steps, rounds, name)
    rows = {}
    for key, series in times.items():
        family = key.rsplit(" ", 1)[0] if key.startswith("torch") else key.split(" ")[0]
        seconds = statistics.median(series)
        rows[key] = {
            "ms": seconds * 1e3,
            "ns_per_parameter": seconds / count * 1e9,
            "GB_per_s": BYTES.get(family, 12) * count / seconds / 1e9,
            "ratio": statistics.median(x / y for x, y in zip(series, times[BASELINE], strict=True)),
        }
    return {"tensors": len(params), "parameters": count, "rounds": rounds, "rows": rows}


def bench_in_processes(name: str, rounds: int, processes: int) -> dict[str, Any]:
    """The medians over fresh processes, and the range of the ratio."""
    command = [sys.executable, __file__, "--worker", name, "--rounds", str(rounds)]
    runs = [
        json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        for _ in tqdm(range(processes), desc=name, disable=not sys.stderr.isatty())
    ]
    rows = {}
    for key, first in runs[0]["rows"].items():
        seen = [run["rows"][key] for run in runs]
        rows[key] = {column: statistics.median(row[column] for row in seen) for column in first}
        rows[key] |= {"ratios": [row["ratio"] for row in seen]}
    return {**runs[0], "processes": processes, "rows": rows}


def bench_overhead(rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds of a step on 400 tensors of 16 elements."""

    def new_gradients(params: list[torch.nn.Parameter]) -> None:
        for p in params:
            p.grad = torch.randn_like(p)

    sizes = [torch.Size((16,))] * 400
    rows: dict[str, dict[str, float]] = {}
    for key, build in OPTIMIZERS.items():
        params = make(sizes)
        step = {key: build(params).step}
        again = interleave(step, rounds, key)[key]
        fresh = interleave(step, rounds, key, lambda p=params: new_gradients(p))[key]  # type: ignore[misc]
        rows[key] = {"again": statistics.median(again), "again, new gradients": statistics.median(fresh)}
    params = make(sizes)
    steps = {key: build(params).step for key, build in OPTIMIZERS.items()}
    for key, series in interleave(steps, rounds, "in turn", lambda: new_gradients(params)).items():
        rows[key]["in turn, new gradients"] = statistics.median(series)
    return {key: {column: 1e6 * seconds for column, seconds in row.items()} for key, row in rows.items()}


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit.stdout.strip() or "unknown",
        "cpu": model.group(1) if model else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "path": optim.Adan([torch.nn.Parameter(torch.zeros(1))]).path,
    }


def table(header: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["", *("| " + " | ".join(cells) + " |" for cells in lines)]


def markdown(result: dict[str, Any]) -> str:
    """The result as tables."""
    about = result["machine"]
    lines = [
        "# Optimizer steps on the CPU",
        "",
        f"`{about['command']}` at commit {about['commit']}: {about['cpu']}, {about['threads']} threads, "
        f"torch {about['torch']}, Python {about['python']}, {about['path']}. float32, seed 0, medians of "
        "interleaved rounds; `ratio` is to torch's fused AdamW in the same process.",
    ]
    for name, run in result["lists"].items():
        size = f"{run['tensors']} tensors, {run['parameters'] / 1e6:.1f} M parameters"
        lines += ["", f"## {name}: {size}, {run['processes']} processes of {run['rounds']} rounds"]
        cells = (
            [
                key,
                f"{r['ms']:.2f}",
                f"{r['ns_per_parameter']:.3f}",
                f"{r['GB_per_s']:.1f}",
                f"{r['ratio']:.2f}",
                f"{min(r['ratios']):.2f} to {max(r['ratios']):.2f}",
            ]
            for key, r in run["rows"].items()
        )
        lines += table(["step", "ms", "ns/parameter", "GB/s", "ratio", "over processes"], cells)
    lines += ["", "## 400 tensors of 16 elements, microseconds"]
    columns = list(next(iter(result["overhead_us"].values())))
    cells = ([key, *(f"{row[c]:.0f}" for c in columns)] for key, row in result["overhead_us"].items())
    lines += table(["step", *columns], cells)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lists", nargs="+", default=["vit_small_patch16_224", "resnet50", "4 x 4096x4096"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    parser.add_argument("--worker", metavar="LIST", help="measure one list in this process and print JSON")
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(bench_list(options.worker, options.rounds)))
        return
    result = {
        "machine": machine(),
        "lists": {
            name: bench_in_processes(name, options.rounds, options.processes) for name in options.lists
        },
        "overhead_us": bench_overhead(200),
    }
    print(markdown(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(markdown(result))


if __name__ == "__main__":
    main()
