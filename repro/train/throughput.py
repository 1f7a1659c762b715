"""The speed of a run: samples and operations per second, and the share of time spent waiting for data.

Operations are multiplications and additions in matrix products, convolutions and attention, as counted by
torch's FlopCounterMode. A training step counts as three forward passes; recomputed activations do not count.
MFU (model FLOPs utilisation, arXiv 2204.02311, appendix B) is the rate of operations over the devices' peak
in bf16.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, cast

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from repro import hardware
from repro.train.task import Task

FORWARD_PASSES = 3  # a backward pass is two


@dataclass
class Clock:
    """The time of a run over all its starts, in seconds."""

    seconds: float = 0.0  # total
    train_seconds: float = 0.0  # part of the total spent on training steps
    wait_seconds: float = 0.0  # part of these spent waiting for the next batch


class Throughput:
    """Keeps the clock of a run and computes its speed.

    Args:
        clock: the time of earlier starts; it is kept up to date.
        unit: the unit of speed, in the plural.
        samples: units in a step, over all processes.
        peak: operations per second of all devices together; None if unknown.
    """

    def __init__(self, clock: Clock, unit: str, samples: int, peak: float | None) -> None:
        self.clock, self.unit, self.samples, self.peak = clock, unit, samples, peak
        self.forward_flops: float | None = None  # of one unit; 0 if they cannot be counted
        self.mark = perf_counter()
        self.window_start, self.window_steps = replace(clock), 0

    def tick(self, training: bool = False) -> None:
        """Add the time since the last tick to the clock; `training`: as training time, too."""
        now = perf_counter()
        self.clock.seconds += now - self.mark
        self.clock.train_seconds += (now - self.mark) * training
        self.mark = now

    def waiting(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches, and add the time spent waiting for each to the clock."""
        iterator = iter(batches)
        while True:
            begin = perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.clock.wait_seconds += perf_counter() - begin
            yield batch

    def window(self) -> dict[str, float]:
        """Return the speed of the `window_steps` since the last call; call it after a tick."""
        seconds = self.clock.train_seconds - self.window_start.train_seconds
        waited = self.clock.wait_seconds - self.window_start.wait_seconds
        rates = self.rates(self.window_steps, seconds, waited)
        self.window_start, self.window_steps = replace(self.clock), 0
        return rates

    def rates(self, steps: int, seconds: float, waited: float) -> dict[str, float]:
        """Return samples and 10^12 operations per second, MFU and the share of time waiting for data."""
        samples = steps * self.samples / seconds
        numbers = {f"{self.unit}_per_second": samples, "wait_share": waited / seconds}
        if self.forward_flops:
            flops = samples * FORWARD_PASSES * self.forward_flops
            numbers["tflop_per_second"] = flops / 1e12
            if self.peak is not None:
                numbers["mfu"] = flops / self.peak
        return {key: float(f"{value:.4g}") for key, value in numbers.items()}


def count_flops(task: Task, module: nn.Module, batch: Any) -> int:
    """Return the operations of the forward pass of a micro-batch, without computing it.

    The loss runs on the meta device. The result is 0 for a task whose loss depends on values.
    """
    tensors = {
        name: tensor.to("meta")
        for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers())
    }

    def model(*inputs: Any, **options: Any) -> Any:
        return torch.func.functional_call(module, tensors, inputs, options)

    counter = FlopCounterMode(display=False)
    task.state = {}
    try:
        with counter, torch.no_grad():
            task.loss(cast(nn.Module, model), send_to_device(batch, torch.device("meta")))
    except (NotImplementedError, RuntimeError):  # of a meta tensor whose value is read
        return 0
    return counter.get_total_flops()


def device_peak(device: torch.device, devices: int) -> float | None:
    """Return the peak operations per second of `devices` such devices, or None without a data sheet."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).replace("H200", "H100")  # they differ only in memory
    return next((peak * devices for gpu, peak in hardware.PEAK.items() if gpu in name), None)
