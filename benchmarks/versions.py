"""Time the optimizers of this checkout and of another one.

PATH is a checkout with built kernels (`python setup.py build_ext --inplace` in it). Both versions work on the
same parameters and gradients in one process, one step each in turn, with torch's fused AdamW: how does a
change affect the speed? The last lists are 400 tensors of 16 elements, where the time is overhead: in turn,
which evicts each one's data from the caches, and repeated, the fastest tenth of the steps. "DTensors" are 300
sharded parameters of one process, as FSDP2 makes them.

Examples:
    python benchmarks/versions.py PATH
    python benchmarks/versions.py PATH --rounds 5 --processes 2
"""

import argparse
from pathlib import Path

from benchmarks.common import parser

IN_TURN, AGAIN, SHARDED = "400 x 16, in turn", "400 x 16, again", "300 x 16, DTensors"
LISTS = ["ViT-S", "ResNet-50", IN_TURN, AGAIN, SHARDED]


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    found = parser(__doc__)
    found.add_argument("checkout", type=Path, metavar="PATH", help="the other checkout")
    found.add_argument("--lists", nargs="+", metavar="LIST", default=LISTS)
    found.add_argument("--rounds", type=int, default=15)
    found.add_argument("--processes", type=int, default=5)
    found.add_argument("--worker", action="store_true", help="measure in this process and print JSON")
    return found.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import importlib.util
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

import adan_optim
from benchmarks.common import check, fresh, interleave, machine, made, seconds
from benchmarks.optimizers import BASELINE, make, shapes
from repro.environment import commit
from repro.errors import UserError
from repro.results import page, publish, table
from repro.train.cli import exit_status

NAMES = ("adan", "adamw")


def load(checkout: Path) -> ModuleType:
    """Return the package `adan_optim` of another checkout, imported as `optim_before`."""
    folder = checkout / "optim" / "adan_optim"
    spec = importlib.util.spec_from_file_location(
        "optim_before", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def shard(params: Sequence[torch.Tensor]) -> list[torch.nn.Parameter]:
    """Return parameters, and their gradients, of any shapes as DTensors of this process alone."""
    from torch._C._distributed_c10d import HashStore
    from torch.distributed.tensor import Shard, distribute_tensor

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    sharded = []
    for p in params:
        assert p.grad is not None
        q = torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)]))
        q.grad = distribute_tensor(p.grad, mesh, [Shard(0)])
        sharded.append(q)
    return sharded


def measure(checkout: Path, name: str, rounds: int) -> dict[str, float]:
    """Return the seconds of a step, medians over rounds; for AGAIN the fastest tenth."""
    counts = {IN_TURN: 400, AGAIN: 400, SHARDED: 300}
    sizes = [torch.Size((16,))] * counts[name] if name in counts else shapes(name)
    params = make(sizes, "cpu")
    if name == SHARDED:
        params = shard(params)
    steps = {BASELINE: torch.optim.AdamW(params, fused=name != SHARDED).step}
    for label, package in {"before": load(checkout), "now": adan_optim}.items():
        for key in NAMES:
            steps[f"{key} {label}"] = package.OPTIMIZERS[key](params, fused=True, weight_decay=0.02).step
    if name == AGAIN:
        times: dict[str, list[float]] = defaultdict(list)
        for key, step in [*steps.items()] * rounds:
            times[key] += [seconds(step, "cpu") for _ in range(60)]
        return {key: statistics.quantiles(values, n=10)[0] for key, values in times.items()}
    series = interleave(steps, rounds * {IN_TURN: 40, SHARDED: 4}.get(name, 1), name, "cpu")
    return {key: statistics.median(values) for key, values in series.items()}


def markdown(about: dict[str, Any], other: str, lists: dict[str, list[dict[str, float]]]) -> str:
    """Return the page of a result."""
    rows = []
    for name, runs in lists.items():
        for key in NAMES:
            before, now = ([run[f"{key} {label}"] for run in runs] for label in ("before", "now"))
            times = [f"{1e3 * statistics.median(seconds):.3f}" for seconds in (before, now)]
            ratios = [new / old for old, new in zip(before, now, strict=True)]
            spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            rows.append([name, key, *times, spread])
    return page(
        "Steps before and after",
        f"{made(about)} Before: commit {other}. Medians of rounds in turn, then over processes.",
        table(["list", "optimizer", "before, ms", "now, ms", "now to before (over processes)"], rows),
    )


@exit_status
def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write, and return the exit status."""
    options = read_options(arguments)
    check(options, "rounds", "processes")
    if not list(options.checkout.glob("optim/adan_optim/_cpu*.so")):
        raise UserError(f"{options.checkout} has no built kernels: python setup.py build_ext --inplace there")
    if options.worker:
        print(json.dumps(measure(options.checkout, options.lists[0], options.rounds)))
        return 0
    command = [__file__, str(options.checkout), "--worker", "--rounds", str(options.rounds), "--lists"]
    lists = {name: fresh([[*command, name]] * options.processes, name) for name in options.lists}
    about, other = machine("cpu", arguments), commit(options.checkout) or "unknown"
    publish({"machine": about, "before": other, "lists": lists}, markdown(about, other, lists), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
