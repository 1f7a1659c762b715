"""The state of a run, which training changes."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from repro.train.throughput import Clock


@dataclass
class Progress(Clock):
    """The progress of a run; stored in every checkpoint."""

    step: int = 0  # optimizer steps done
    last: dict[str, Any] | None = None  # the newest record of a finished epoch
    best: dict[str, Any] | None = None  # the one with the best metric
    tracked: dict[str, Any] = field(default_factory=dict)  # memory of the tracker


@dataclass
class TrainState:
    """Everything, besides the loss scale, that determines the rest of a run; stored in checkpoints.

    Attributes:
        module: the unwrapped model; with fsdp its parameters are sharded.
        optimizer: the unwrapped optimizer.
        ema: the averaged model, if there is one.
        history: `loss` of the last steps, [steps of an epoch], and `grad_norm` if gradients are clipped.
        carried: by micro-batch of a step, the tensors for the next step; see Task.state.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None
    history: dict[str, Tensor]
    carried: list[dict[str, Tensor]]
    progress: Progress = field(default_factory=Progress)

    def recent(self, name: str, steps: int) -> Tensor:
        """Return the history `name` of the last `steps` steps, [steps]."""
        numbers = self.history[name]
        last = torch.arange(self.progress.step - steps, self.progress.step, device=numbers.device)
        return numbers[last % len(numbers)]

    @property
    def parameters(self) -> int:
        """The number of the model's parameters."""
        return sum(p.numel() for p in self.module.parameters())
