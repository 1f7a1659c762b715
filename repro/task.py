"""What a recipe is to the training loop."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from repro.data import Sized
from repro.errors import UserError


class Task(ABC):
    """A model, its data, its loss and its measure. The loop knows nothing else of a recipe."""

    name: str  # the entry point's, e.g. "vision"
    samples = "images"  # what the samples are called in reports
    metric: str  # the key of `measure` that decides which checkpoint is best
    higher_is_better = True
    model_name: str

    @abstractmethod
    def train_data(self) -> Sized:
        """Return the training set. Its items may be random: the loop seeds the global generators for each."""

    @abstractmethod
    def test_data(self) -> Sized:
        """Return the set that is measured after every epoch. Its items must not be random."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Return the model with its initial weights, on the CPU."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss over a micro-batch, to be minimised."""

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the class scores [..., classes] for a micro-batch, for estimates of the Hessian (Sophia)."""
        raise UserError(f"optimizer=sophia: the recipe {self.name} has no class scores to estimate from")

    @abstractmethod
    def measure(self, model: nn.Module, batch: Any) -> tuple[dict[str, Tensor], int]:
        """Return sums of each measure over a batch and what to divide them by (the number of samples)."""

    def move(self, batch: Any, device: torch.device) -> Any:
        """Return the batch (a list of tensors) on the device."""
        return [tensor.to(device, non_blocking=True) for tensor in batch]
