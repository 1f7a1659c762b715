"""How fast a run trains: samples and floating point operations a second, and how long it waited for data.

An operation is a multiplication or an addition in a matrix product, a convolution or attention, as torch's
FlopCounterMode counts them; a training step is three forward passes, and what activation checkpointing
computes again does not count. MFU (model FLOPs utilisation, arXiv 2204.02311, appendix B) is their rate over
the peak of the devices in bf16.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
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
    """Where a run's time went so far, over all its starts; seconds."""

    seconds: float = 0.0  # all in all
    train_seconds: float = 0.0  # of these, on training steps
    wait_seconds: float = 0.0  # of these, until the next batch was there


class Throughput:
    """Keeps the clock of a run and computes its speed.

    Args:
        clock: what the run's earlier starts took; it is kept up to date.
        unit: what a sample is called, in the plural.
        samples: of a step, over all processes.
        peak: operations a second that all devices together can do; None where it is not known.
    """

    def __init__(self, clock: Clock, unit: str, samples: int, peak: float | None) -> None:
        self.clock, self.unit, self.samples, self.peak = clock, unit, samples, peak
        self.forward_flops: float | None = None  # of a sample; 0 where they cannot be counted
        self.mark = perf_counter()
        self.window_start, self.window_steps = replace(clock), 0

    def tick(self, training: bool = False) -> None:
        """Add the time since the last tick to the clock, as `training` or as time between it."""
        now = perf_counter()
        self.clock.seconds += now - self.mark
        self.clock.train_seconds += (now - self.mark) * training
        self.mark = now

    def waiting(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Pass batches on and time how long each was waited for."""
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
        """Return samples and 10^12 operations a second, MFU and the share of time spent waiting for data."""
        samples = steps * self.samples / seconds
        numbers = {f"{self.unit}_per_second": samples, "wait_share": waited / seconds}
        if self.forward_flops:
            flops = samples * FORWARD_PASSES * self.forward_flops
            numbers["tflop_per_second"] = flops / 1e12
            if self.peak is not None:
                numbers["mfu"] = flops / self.peak
        return {key: float(f"{value:.4g}") for key, value in numbers.items()}


def sample_rate(record: Mapping[str, Any]) -> tuple[str, float]:
    """Return what a sample is called, in the plural, and how many there were a second.

    Args:
        record: anything with the numbers of `Throughput.rates`: a line of speed.jsonl, a summary.

    Raises:
        KeyError: the record has no such number.
    """
    for key, value in record.items():
        unit = key.removesuffix("_per_second")
        if unit not in (key, "tflop"):
            return unit, value
    raise KeyError("no number of samples per second")


def count_flops(task: Task, module: nn.Module, batch: Any) -> int:
    """Return the operations of the forward pass of a micro-batch, without computing anything.

    The loss is taken on the meta device: 0 for a task whose loss looks at values.
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
            task.loss(cast(nn.Module, model), send_to_device(batch, "meta"))
    except (NotImplementedError, RuntimeError):  # what torch says to a value asked of a meta tensor
        return 0
    return counter.get_total_flops()


def device_peak(device: torch.device, devices: int) -> float | None:
    """Return the operations a second of `devices` like this one, None where we have no data sheet."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).replace("H200", "H100")  # which differ in memory alone
    return next((peak * devices for gpu, peak in hardware.PEAK.items() if gpu in name), None)
