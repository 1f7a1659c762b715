"""Evaluate a model on a set; each sample counts once, for any number of processes."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from repro.train.config import TrainConfig
from repro.train.data import Sized, keyed, make_loader
from repro.train.state import TrainState
from repro.train.task import Task


@dataclass
class Batches:
    """The batches of a process; those after the first `counted` are padding and not scored."""

    loader: Iterable[Any]
    counted: int


class Evaluator:
    """Evaluates the sets of a task.

    Args:
        micro_batch_size: maximum number of samples in a batch.
        autocast: returns the context in which the model computes.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        accelerator: Accelerator,
        micro_batch_size: int,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.task, self.config, self.accelerator = task, config, accelerator
        self.micro_batch_size = micro_batch_size
        self.autocast = autocast

    def batches(self, data: Sized) -> Batches:
        """Return this process's batches of a set."""
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        mine = list(self._plan(data, rank))
        counted = len(mine)
        if self.config.fsdp:  # processes compute in step, so all have the same number of batches
            plans = [self._plan(data, other) for other in range(processes)]
            mine += [plans[0][0]] * (max(map(len, plans)) - counted)
        loader = make_loader(data, keyed(mine), None, self.config.workers, collate=self.task.collate)
        return Batches(loader, counted)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """Return the task's metrics."""
        model.eval()
        self.task.state = {}
        device = self.accelerator.device
        sums: dict[str, Tensor] = {}
        count: Tensor | int = 0
        for index, batch in enumerate(batches.loader):
            with self.autocast():
                sums_of_batch, size = self.task.evaluate(model, self.task.move(batch, device))
            counts = index < batches.counted
            count += size * counts
            for key, value in sums_of_batch.items():
                sums[key] = sums.get(key, 0) + value.double() * counts
        count = torch.as_tensor(count, dtype=torch.float64, device=device)
        totals = {key: self.accelerator.reduce(value, "sum").cpu() for key, value in sums.items()}
        return self.task.metrics(totals, float(self.accelerator.reduce(count, "sum")))

    def _plan(self, data: Sized, rank: int) -> Sequence[Sequence[int]]:
        return self.task.eval_plan(data, self.micro_batch_size, self.accelerator.num_processes, rank)


@torch.no_grad()
def average_statistics(state: TrainState, accelerator: Accelerator) -> None:
    """Average the statistics of BatchNorm over the processes, as timm does (--dist-bn reduce).

    The averaged model gets those of the first process, which are also in its checkpoint.
    """
    if accelerator.num_processes == 1:
        return
    for name, buffer in state.module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(accelerator.reduce(buffer, "mean"))
    if state.ema is not None:
        for buffer in state.ema.module.buffers():
            buffer.copy_(broadcast(buffer))
