"""A task so small that a run takes a fraction of a second, yet random in every way a real one is."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.train.data import Sized
from repro.train.task import Task


class Points:
    """Points on a line, jittered by all three global random generators; the label is the sign."""

    def __init__(self, size: int, jitter: float) -> None:
        self.size, self.jitter = size, jitter

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = index / self.size - 0.5
        if self.jitter:
            noise = random.gauss(0, 1) + np.random.randn() + torch.randn(()).item()  # noqa: NPY002
            return torch.tensor([x + self.jitter * noise, 1.0]), int(x > 0)
        return torch.tensor([x, 1.0]), int(x > 0)


class Block(nn.Module):
    """A layer that adds to its input: what FSDP puts together at a time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(torch.tanh(self.norm(x)))


class ToyTask(Task):
    """Two classes of points, a net with dropout and batch norm."""

    name = "toy"
    samples = "points"
    metric = "accuracy"
    model_name = "toy_net"

    def __init__(self, width: int = 4) -> None:
        self.width = width
        self.seen: list[Tensor] = []

    def train_data(self) -> Sized:
        return Points(64, 0.1)

    def valid_data(self) -> Sized:
        return Points(21, 0.0)

    def build_model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, self.width), nn.BatchNorm1d(self.width), nn.Dropout(0.2), nn.Linear(self.width, 2)
        )

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        if not batch[0].is_meta:  # there the operations are counted
            self.seen.append(batch[0])
        return F.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model: nn.Module, batch: Any) -> tuple[dict[str, Tensor], int]:
        hits = (model(batch[0]).argmax(1) == batch[1]).sum()
        return {"accuracy": 100 * hits}, len(batch[1])


class BlocksTask(ToyTask):
    """A net of blocks. Its validation set gives two processes unequal numbers of batches."""

    name = "blocks"

    def valid_data(self) -> Sized:
        return Points(17, 0.0)

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 8), Block(8), nn.Dropout(0.1), Block(8), nn.Linear(8, 2))

    def sharded(self, module: nn.Module) -> set[str]:
        return {"Block"}

    def evaluate(self, model: nn.Module, batch: Any) -> tuple[dict[str, Tensor], int]:
        loss = F.cross_entropy(model(batch[0]), batch[1], reduction="sum")
        return {**super().evaluate(model, batch)[0], "valid_loss": loss}, len(batch[1])

    def examples(self, model: nn.Module) -> list[str]:
        return [f"{float(model(torch.ones(1, 2))[0, 0]):.5f}"]
