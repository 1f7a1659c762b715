"""Time training steps with and without the monitor.

One process, one timm model, one batch: forward, backward and step of our Adan. Three copies of the model
take turns, in rotating order, so that a machine whose speed drifts slows all alike:

    plain      without a monitor
    between    with a monitor, a step that is not sampled
    sampled    with a monitor, a sampled step, written to a file

The cost at an interval of N is ((N - 1) between + sampled) / (N plain) - 1, from the medians. If noise hides
the difference between plain and between, the time of the hooks themselves says more. It is measured
separately and given as a share of N plain steps.

Examples:
    python benchmarks/monitor_cost.py --rounds 5
    python benchmarks/monitor_cost.py --model resnet18 --batch 32 --out monitor
"""

import argparse

from benchmarks.common import parser


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    found = parser(__doc__, device=True)
    found.add_argument("--model", default="vit_small_patch16_224", help="any timm model")
    found.add_argument("--batch", type=int, default=8)
    found.add_argument("--image", type=int, default=224)
    found.add_argument("--rounds", type=int, default=20)
    return found.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import copy
import functools
import inspect
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import adan_optim
from benchmarks.common import WARM_UP, Step, check, interleave, machine, made
from repro.results import page, publish, table
from repro.train.cli import exit_status

EVERY: int = inspect.signature(adan_optim.Monitor).parameters["every"].default
KINDS: dict[str, int | None] = {"plain": None, "between": 1 << 40, "sampled": 1}  # sampling intervals


class Timed(adan_optim.Monitor):
    """A monitor that keeps the seconds that its hooks take in each step."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seconds: list[float] = []

    def _before_step(self, *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = super()._before_step(*arguments)
        self.seconds.append(time.perf_counter() - begin)
        return result

    def _after_step(self, *arguments: Any) -> None:
        begin = time.perf_counter()
        super()._after_step(*arguments)
        self.seconds[-1] += time.perf_counter() - begin


def measure(name: str, device: str, batch: int, size: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of each kind of step, and of the hooks in it.

    Args:
        name: of the timm model, which gets images [batch, 3, size, size].
    """
    import timm

    torch.manual_seed(0)
    sized: dict[str, Any] = {"img_size": size} if name.startswith("vit") else {}
    initial = timm.create_model(name, num_classes=1000, **sized).to(device)
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.randint(1000, (batch,), device=device)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Timed | None) -> None:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if monitor is not None:
            monitor.record(loss=loss)
        optimizer.step()

    steps: dict[str, Step] = {}
    monitors: dict[str, Timed] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "monitor.jsonl"
        for kind, every in KINDS.items():
            model = copy.deepcopy(initial)
            optimizer = adan_optim.build_optimizer(model, "adan", lr=1e-3, weight_decay=0.02)
            if every is not None:
                path = file if kind == "sampled" else None
                monitors[kind] = Timed(optimizer, model, every=every, path=path, step=1)
            steps[kind] = functools.partial(step, model, optimizer, monitors.get(kind))
        times = interleave(steps, rounds, name, device)
        sample_bytes = len(file.read_bytes().splitlines(keepends=True)[-1])
    seconds = {kind: statistics.median(series) for kind, series in times.items()}
    plain, between, sampled = seconds.values()
    hooks = {kind: statistics.median(each.seconds[WARM_UP[device] :]) for kind, each in monitors.items()}
    return {
        "model": name,
        "batch": batch,
        "image": size,
        "rounds": rounds,
        "tensors": len([*initial.parameters()]),
        "parameters": sum(p.numel() for p in initial.parameters()),
        "every": EVERY,
        "sample_bytes": sample_bytes,
        "seconds": seconds,
        "hooks": {"plain": 0.0, **hooks},
        "cost": ((EVERY - 1) * between + sampled) / (EVERY * plain) - 1,
        "cost_of_hooks": ((EVERY - 1) * hooks["between"] + hooks["sampled"]) / (EVERY * plain),
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the page of a result."""
    about, run = result["machine"], result["run"]
    rows = [
        (
            kind,
            f"{run['seconds'][kind] * 1e3:.1f}",
            f"{run['seconds'][kind] / run['seconds']['plain']:.4f}",
            f"{run['hooks'][kind] * 1e3:.4f}",
        )
        for kind in KINDS
    ]
    return page(
        "What the monitor costs",
        f"{made(about, about['path'])} Training steps of {run['model']} ({run['tensors']} tensors, "
        f"{run['parameters'] / 1e6:.1f} M parameters) on {run['batch']} images of "
        f"{run['image']}x{run['image']}, medians of {run['rounds']} interleaved rounds.",
        table(["step", "ms", "to plain", "of it in the hooks, ms"], rows),
        f"Cost of sampling every {run['every']} steps: {run['cost']:+.2%} from the times of the steps, "
        f"{run['cost_of_hooks']:.3%} from the time in the hooks. A sample takes "
        f"{run['sample_bytes']} bytes in the file.",
    )


@exit_status
def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write, and return the exit status."""
    options = read_options(arguments)
    check(options, "batch", "image", "rounds")
    run = measure(options.model, options.device, options.batch, options.image, options.rounds)
    result = {"machine": machine(options.device, arguments), "run": run}
    publish(result, markdown(result), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
