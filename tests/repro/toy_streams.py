"""A toy language model: streams of numbers, a net whose state is carried, losses that are weighed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.train.config import TrainConfig
from repro.train.data import Plan, Sized, in_order
from repro.train.task import Task

SYMBOLS, LENGTH, STREAMS, SEGMENTS = 5, 6, 6, 4


class Segments:
    """Segments of parallel streams at segment * STREAMS + stream: (symbols, which of them count, index)."""

    def __init__(self, segments: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        steps = torch.randint(1, 3, (STREAMS, segments * LENGTH + 1), generator=generator)
        self.symbols, self.segments = steps.cumsum(1) % SYMBOLS, segments
        self.counts = torch.rand(STREAMS, segments * LENGTH, generator=generator) < 0.7

    def __len__(self) -> int:
        return self.segments * STREAMS

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        segment, stream = divmod(index, STREAMS)
        begin, end = segment * LENGTH, (segment + 1) * LENGTH
        return self.symbols[stream, begin : end + 1], self.counts[stream, begin:end], index


class Net(nn.Module):
    """Scores of the next symbol [batch, length, SYMBOLS], and the state after the last."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(SYMBOLS, 8, batch_first=True)
        self.head = nn.Linear(8, SYMBOLS)

    def forward(self, symbols: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        states, hidden = self.rnn(F.one_hot(symbols, SYMBOLS).float(), hidden)
        return self.head(states), hidden


class StreamTask(Task):
    """Predicts the next symbol, those that count."""

    name = "streams"
    samples = "symbols"
    per_sample = LENGTH
    metric = "valid_loss"
    model_name = "toy_rnn"

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # as figures() got them last
        self.began = 0

    def train_data(self) -> Sized:
        return Segments(SEGMENTS, 0)

    def valid_data(self) -> Sized:
        return Segments(3, 1)

    def test_data(self) -> Sized:
        return Segments(2, 2)

    def plan(self, data: Sized, config: TrainConfig) -> Plan:
        return in_order(len(data), STREAMS)

    def eval_plan(self, data: Sized, batch_size: int, processes: int, rank: int) -> Sequence[Sequence[int]]:
        mine = range(rank, STREAMS, processes)
        return [[begin + stream for stream in mine] for begin in range(0, len(data), STREAMS)]

    def build_model(self) -> nn.Module:
        return Net()

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        symbols, counts, _ = batch
        if "hidden" in self.state:
            assert self.state["hidden"].shape[1] == len(symbols)
        scores, hidden = model(symbols[:, :-1], self.state.get("hidden"))
        self.state["hidden"] = hidden.detach()
        losses = F.cross_entropy(scores.mT, symbols[:, 1:], reduction="none")
        return losses * counts

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return self.losses(model, batch).sum() / batch[1].sum()

    def num_items(self, batch: Any) -> float:
        return float(batch[1].sum())

    def training_metrics(self, loss: float) -> dict[str, float]:
        return {"train_loss": loss, "train_twice": 2 * loss}

    def evaluate(self, model: nn.Module, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        losses = self.losses(model, batch)
        each = torch.zeros(3 * STREAMS)
        each[batch[2]] = losses.sum(1)
        return {"valid_loss": losses.sum(), "each": each}, batch[1].sum()

    def metrics(self, sums: dict[str, Tensor], count: float) -> dict[str, float]:
        self.sums = sums
        return {"valid_loss": float(sums["valid_loss"]) / count, "valid_count": count}

    def begin(self, folder: Path) -> None:
        self.began += 1
        (folder / "vocabulary.txt").write_text("0 1 2 3 4")

    def examples(self, model: nn.Module) -> list[str]:
        assert not model.training
        assert not torch.is_grad_enabled()
        head: Any = model.get_submodule("head")
        return [f"the bias of the head is {head.bias[0]:.6f}"]
