"""Times training steps with and without the monitor: `python benchmarks/monitor_cost.py [--out PATH]`.

One process, one timm model, one batch: forward, backward and step of optim's Adan. Three kinds of step take
turns, the order rotating, so that a machine whose speed drifts slows all alike:

    plain      without a monitor
    between    with a monitor, a step that is not sampled
    sampled    with a monitor, a sampled step, written to a file

The cost at an interval of N is ((N - 1) between + sampled) / (N plain) - 1, from the medians. Where the
difference of plain and between is lost in the noise of the step, the time that the hooks themselves take says
more: it is measured apart, by the clock around them, and given as a share of N plain steps.
"""

import inspect
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from tqdm import tqdm

import optim
from benchmarks.common import check, machine, made, parser
from repro.results import page, publish, table
from repro.train.cli import exit_status

KINDS = ("plain", "between", "sampled")
EVERY: int = inspect.signature(optim.Monitor).parameters["every"].default


class Timed(optim.Monitor):
    """A monitor that adds up the seconds its hooks take."""

    seconds = 0.0

    def _before_step(self, *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = super()._before_step(*arguments)
        self.seconds += time.perf_counter() - begin
        return result

    def _after_step(self, *arguments: Any) -> None:
        begin = time.perf_counter()
        super()._after_step(*arguments)
        self.seconds += time.perf_counter() - begin


def measure(name: str, device: str, batch: int, size: int, rounds: int) -> dict[str, Any]:
    """Seconds of the kinds of step, and of the hooks in them."""
    import timm

    torch.manual_seed(0)
    sized: dict[str, Any] = {"img_size": size} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=1000, **sized).to(device)
    optimizer = optim.build_optimizer(model, "adan", lr=1e-3, weight_decay=0.02)
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.randint(1000, (batch,), device=device)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def step(monitor: Timed | None) -> float:
        wait()
        begin = time.perf_counter()
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if monitor is not None:
            monitor.record(loss=loss)
        optimizer.step()
        wait()
        return time.perf_counter() - begin

    times, hooks = defaultdict(list), defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for turn in tqdm(range(-1, rounds), desc=name, disable=not sys.stderr.isatty()):
            for i in range(len(KINDS)):
                kind = KINDS[(i + turn) % len(KINDS)]
                if kind == "plain":
                    seconds, hook = step(None), 0.0
                else:
                    every = 1 if kind == "sampled" else 1 << 40
                    path = Path(folder) / "monitor.jsonl"
                    with Timed(optimizer, model, every=every, path=path, step=1) as timed:
                        monitor = cast(Timed, timed)
                        seconds, hook = step(monitor), monitor.seconds
                        if kind == "sampled":
                            sample_bytes = path.stat().st_size
                if turn >= 0:  # the round before the first warms up
                    times[kind].append(seconds)
                    hooks[kind].append(hook)
    plain, between, sampled = (statistics.median(times[kind]) for kind in KINDS)
    inside = {kind: statistics.median(hooks[kind]) for kind in KINDS}
    return {
        "model": name,
        "batch": batch,
        "image": size,
        "rounds": rounds,
        "tensors": len([*model.parameters()]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "every": EVERY,
        "sample_bytes": sample_bytes,
        "seconds": {"plain": plain, "between": between, "sampled": sampled},
        "hooks": inside,
        "cost": ((EVERY - 1) * between + sampled) / (EVERY * plain) - 1,
        "cost_of_hooks": ((EVERY - 1) * inside["between"] + inside["sampled"]) / (EVERY * plain),
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
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
    found = parser(__doc__, device=True)
    found.add_argument("--model", default="vit_small_patch16_224", help="any timm model")
    found.add_argument("--batch", type=int, default=8)
    found.add_argument("--image", type=int, default=224)
    found.add_argument("--rounds", type=int, default=20)
    options = found.parse_args(arguments)
    check(options, "batch", "image", "rounds")
    run = measure(options.model, options.device, options.batch, options.image, options.rounds)
    result = {"machine": machine(options.device, arguments), "run": run}
    publish(result, markdown(result), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
