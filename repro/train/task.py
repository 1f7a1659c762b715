"""What a recipe is to the training loop."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from repro.errors import UserError
from repro.train.config import TrainConfig
from repro.train.data import Plan, Sized, dealt, shuffled


class Task(ABC):
    """A model, its data, its loss and its metrics. The loop knows nothing else of a recipe.

    A recipe's task takes its configuration, and with `synthetic` needs no data: see `synthetic_batch`.
    """

    name: str  # the entry point's, e.g. "vision"
    schema: type[TrainConfig]  # of the recipe's configuration
    samples = "images"  # the unit of speed, in the plural
    per_sample = 1  # of that unit in a sample, e.g. the tokens of a sequence
    metric: str  # decides which checkpoint is best; see repro.direction
    model_name: str
    # For plans, see repro.planner: the kind of models in repro.hardware.FAMILIES, None where no plan is made,
    # and the last dimension of the scores, by which their memory is told from other activations'.
    family: str | None = None
    classes: int | None = None
    # Names of what the recipe puts into a run's folder, in `begin` or `finish`; a run that starts afresh
    # there removes them.
    products: tuple[str, ...] = ()

    # What the next micro-batch needs of this one, detached: a memory, hidden states. The loop hands each
    # micro-batch of a step its own, empties them when an epoch begins, keeps them in checkpoints, and has an
    # empty one for evaluation.
    state: dict[str, Tensor]

    # ---- data

    @abstractmethod
    def train_data(self) -> Sized:
        """Return the training set. Its items may be random: the loop seeds the global generators for each."""

    @abstractmethod
    def valid_data(self) -> Sized:
        """Return the set that is evaluated while training. Its items must not be random."""

    def test_data(self) -> Sized | None:
        """Return the set that is evaluated once, at the end, with the best weights; None if there is none."""
        return None

    def plan(self, data: Sized, config: TrainConfig) -> Plan:
        """Return which samples of the training set are in which step."""
        return shuffled(len(data), config.batch_size, config.seed, config.repeats)

    def eval_plan(self, data: Sized, batch_size: int, processes: int, rank: int) -> Sequence[Sequence[int]]:
        """Return the evaluation batches of one process: indices of samples, at most `batch_size` in each."""
        return dealt(len(data), batch_size, processes, rank)

    def collate(self, samples: list[Any]) -> Any:
        """Return a batch, a list of tensors of which each has the samples first."""
        return default_collate(samples)

    def move(self, batch: Any, device: torch.device) -> Any:
        """Return the batch on the device."""
        moved = [tensor.to(device, non_blocking=True) for tensor in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else moved  # a NamedTuple stays one

    # ---- training

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Return the model with its initial weights, on the CPU."""

    def initial(self) -> nn.Module:
        """Return the model whose parameters a row of the ledger counts: without adapters of a fine-tuning."""
        return self.build_model()

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss over a micro-batch, to be minimised."""

    def num_items(self, batch: Any) -> float | None:
        """Return the number of items (tokens, examples) that the loss of a batch, on the CPU, averages over.

        A step's loss is then the mean over the items of all its micro-batches; with None each micro-batch
        counts the same.
        """
        return None

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the class scores [..., classes] for a micro-batch, for estimates of the Hessian (Sophia)."""
        raise UserError(f"optimizer=sophia: the recipe {self.name} has no class scores to estimate from")

    def flops(self, batch: Any) -> float | None:
        """Return the operations of a micro-batch's forward pass; None to count them (throughput.py)."""
        return None

    def sharded(self, module: nn.Module) -> set[str]:
        """Return the classes of the modules that fsdp=true puts together one at a time.

        Models of transformers say which those are.
        """
        return set(getattr(module, "_no_split_modules", None) or ())

    def synthetic_batch(self, n: int) -> Any:
        """Return a micro-batch of n random samples as `move` gives it to `loss`, of the configured shapes.

        Its tensors are on the CPU, or fake or on another device in a context that makes them so. A task that
        was made with `synthetic` can build its model, then do this, `loss`, `logits` and `flops`, and no
        more. Sizes that data would decide are the published ones, or those of the configuration.
        """
        raise UserError(f"the recipe {self.name} makes no synthetic batches")

    # ---- what is recorded

    def training_metrics(self, loss: float) -> dict[str, float]:
        """Return the metrics to record for a mean training loss; `train_loss` must be among them."""
        return {"train_loss": loss}

    @abstractmethod
    def evaluate(self, model: nn.Module, batch: Any) -> tuple[dict[str, Tensor], int | Tensor]:
        """Return the sum of each metric over a batch, and the number of items summed.

        They are added up over batches and processes, and may have any shape: a vector with each sample's
        prediction in its place and 0 elsewhere becomes that of all predictions.
        """

    def metrics(self, sums: dict[str, Tensor], count: float) -> dict[str, float]:
        """Return the metrics to record for the sums, in float64 on the CPU: here their means over all items.

        Names that begin with `valid_` begin with `test_` when the test set was evaluated.
        """
        return {key: float(value) / count for key, value in sums.items()}

    def begin(self, folder: Path) -> None:  # noqa: B027 (most recipes have nothing to put there)
        """Put what belongs to a run into its folder, before the first step."""

    def finish(self, folder: Path) -> None:  # noqa: B027 (as `begin`)
        """Put what the best weights make into a finished run's folder, also when it is asked for again."""

    def examples(self, model: nn.Module) -> list[str]:
        """Return lines for the summary that show a person what the model, with its best weights, learned."""
        return []
