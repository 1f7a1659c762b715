"""Measuring a model on a set, each sample counted once however many processes share the work."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import broadcast  # type: ignore[import-untyped]
from torch import Tensor, nn

from repro.train.config import TrainConfig
from repro.train.data import Sized, keyed, make_loader
from repro.train.state import TrainState
from repro.train.task import Task


@dataclass
class Batches:
    """The batches that a process measures; those past the first `counted` are padding and are not scored."""

    loader: Iterable[Any]
    counted: int


class Measurer:
    """Measures a task's sets.

    Args:
        share: samples in a batch, at most.
        autocast: gives the context in which the model computes.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        accelerator: Accelerator,
        share: int,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.task, self.config, self.accelerator, self.share = task, config, accelerator, share
        self.autocast = autocast

    def batches(self, data: Sized) -> Batches:
        """Return this process's batches of a set."""
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        mine = list(self._plan(data, rank))
        counted = len(mine)
        if self.config.fsdp:  # all processes compute together, so each has as many batches as any other
            plans = [self._plan(data, other) for other in range(processes)]
            mine += [plans[0][0]] * (max(map(len, plans)) - counted)
        loader = make_loader(data, keyed(mine), None, self.config.workers, collate=self.task.collate)
        return Batches(loader, counted)

    @torch.no_grad()
    def measure(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """Return the task's figures."""
        model.eval()
        self.task.state = {}
        device = self.accelerator.device
        sums: dict[str, Tensor] = {}
        count: Tensor | int = 0
        for index, batch in enumerate(batches.loader):
            with self.autocast():
                measures, size = self.task.measure(model, self.task.move(batch, device))
            counts = index < batches.counted
            count += size * counts
            for key, value in measures.items():
                sums[key] = sums.get(key, 0) + value.double() * counts
        count = torch.as_tensor(count, dtype=torch.float64, device=device)
        totals = {key: self.accelerator.reduce(value, "sum").cpu() for key, value in sums.items()}
        return self.task.figures(totals, float(self.accelerator.reduce(count, "sum")))

    def _plan(self, data: Sized, rank: int) -> Sequence[Sequence[int]]:
        return self.task.measure_plan(data, self.share, self.accelerator.num_processes, rank)


@torch.no_grad()
def average_statistics(state: TrainState, accelerator: Accelerator) -> None:
    """Average BatchNorm's statistics over the processes, as timm does (--dist-bn reduce).

    The averaged model gets those of the first process, so that a continued run has them, too.
    """
    if accelerator.num_processes == 1:
        return
    for name, buffer in state.module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(accelerator.reduce(buffer, "mean"))
    if state.ema is not None:
        for buffer in state.ema.module.buffers():
            buffer.copy_(broadcast(buffer))
