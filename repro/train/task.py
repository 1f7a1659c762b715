"""The interface between a recipe and the training loop."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, cast

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import default_collate
from typing_extensions import TypeVar

from repro.errors import UserError
from repro.train.config import TrainConfig
from repro.train.data import Plan, Sized, dealt, shuffled

Batch = TypeVar("Batch", default=Any)  # a list, tuple or NamedTuple of tensors, each [samples, ...]


class Task(ABC, Generic[Batch]):
    """A model, its data, its loss and its metrics: all that the loop knows of a recipe.

    Generic over the type of its batches. A recipe's task is made from its configuration; with `synthetic` it
    needs no data, see `synthetic_batch`.
    """

    name: str  # the entry point's, e.g. "vision"
    schema: type[TrainConfig]  # of the recipe's configuration
    samples = "images"  # the unit of speed, in the plural
    per_sample = 1  # number of that unit in a sample, e.g. the tokens of a sequence
    metric: str  # selects the best checkpoint; see repro.direction
    model_name: str
    # For plans, see repro.planner: the family of models in repro.hardware.FAMILIES (None: no plans), and the
    # last dimension of the logits, which tells their memory from that of other activations.
    family: str | None = None
    classes: int | None = None
    # Submodules that only a synthetic model has: other models, which its loss computes with.
    beside: tuple[str, ...] = ()
    passes = 3.0  # the cost of a training step in forward passes, if no activations are recomputed
    # Names of the files that `begin` and `finish` write into a run's folder; run.overwrite removes them.
    products: tuple[str, ...] = ()

    # Detached tensors that a micro-batch hands to that of the next step: a memory, hidden states. The loop
    # keeps one dict per micro-batch of a step, also in checkpoints, and empties them when an epoch begins.
    # Evaluation starts with an empty one.
    state: dict[str, Tensor]

    # ---- data

    @abstractmethod
    def train_data(self) -> Sized:
        """Return the training set.

        Its items may be random: the loop seeds the global generators for each. A set that makes whole batches
        (see repro.train.data.Whole) gets its random numbers with the indices.
        """

    @abstractmethod
    def valid_data(self) -> Sized:
        """Return the set that is evaluated during training. Its items must not be random."""

    def test_data(self) -> Sized | None:
        """Return the set that is evaluated once, at the end, with the best weights, or None."""
        return None

    def plan(self, data: Sized, config: TrainConfig) -> Plan:
        """Return the plan: the samples of the training set in each step."""
        return shuffled(len(data), config.batch_size, config.seed, config.repeats)

    def eval_plan(self, data: Sized, batch_size: int, processes: int, rank: int) -> Sequence[Sequence[int]]:
        """Return the evaluation batches of one process: indices of at most `batch_size` samples each."""
        return dealt(len(data), batch_size, processes, rank)

    def collate(self, samples: list[Any]) -> Batch:
        """Return a batch of samples, of which tuples give a list, and NamedTuples their own type."""
        return cast(Batch, default_collate(samples))

    def move(self, batch: Batch, device: torch.device) -> Batch:
        """Return the batch on the device, in the same container."""
        return cast(Batch, send_to_device(batch, device, non_blocking=True))

    # ---- training

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Return the model with its initial weights, on the CPU."""

    def initial(self) -> nn.Module:
        """Return the model whose parameters a row of the ledger counts, without adapters of fine-tuning."""
        return self.build_model()

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss over a micro-batch, a scalar."""

    def num_items(self, batch: Batch) -> float | None:
        """Return the number of items (tokens, examples) in the mean loss of a batch, which is on the CPU.

        The loss of a step is then the mean over the items of all its micro-batches. With None each
        micro-batch has the same weight.
        """
        return None

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits [..., classes] of a micro-batch, for estimates of the Hessian (Sophia).

        Raises:
            UserError: the recipe has none.
        """
        raise UserError(f"optimizer=sophia: the recipe {self.name} has no class scores to estimate from")

    def flops(self, batch: Batch) -> float | None:
        """Return the operations of the forward pass of a micro-batch; None: count them (throughput.py)."""
        return None

    def sharded(self, module: nn.Module) -> set[str]:
        """Return the class names of the modules that fsdp=true gathers one at a time.

        Models of transformers state them.
        """
        return set(getattr(module, "_no_split_modules", None) or ())

    def synthetic_batch(self, n: int) -> Batch:
        """Return a micro-batch of n random samples, as `loss` gets it from `move`, in the configured shapes.

        Its tensors are on the CPU, or fake or on another device in a context for that. A task made with
        `synthetic` can only build its model and call this, `loss`, `logits` and `flops`. Sizes that depend on
        data are the published ones, or those in the configuration.

        Raises:
            UserError: the recipe has no synthetic batches.
        """
        raise UserError(f"the recipe {self.name} makes no synthetic batches")

    # ---- what is recorded

    def training_metrics(self, loss: float) -> dict[str, float]:
        """Return the metrics to record for a mean training loss; `train_loss` must be among them."""
        return {"train_loss": loss}

    @abstractmethod
    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], int | Tensor]:
        """Return the sum of each metric over a batch, and the number of items in it.

        Sums are added over batches and processes. They may have any shape: a vector [samples] with the
        batch's predictions in their places and 0 elsewhere becomes the vector of all predictions.
        """

    def metrics(self, sums: dict[str, Tensor], count: float) -> dict[str, float]:
        """Return the metrics to record: by default the means of the sums (float64, on the CPU).

        For the test set, `valid_` at the beginning of a name becomes `test_`.
        """
        return {key: float(value) / count for key, value in sums.items()}

    def begin(self, folder: Path) -> None:
        """Write the recipe's files into the folder of a run, before the first step."""

    def finish(self, folder: Path) -> None:
        """Write the products of the best weights into the folder of a finished run, again if it is rerun."""

    def examples(self, model: nn.Module) -> list[str]:
        """Return lines for the summary that show what the model has learned, with its best weights."""
        return []
