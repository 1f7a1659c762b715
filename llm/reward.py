"""Train a reward model, which gives the better of two answers the higher score.

    python llm/reward.py optimizer=adan epochs=1
    python llm/reward.py model.checkpoint=RUN data.root=PATH lora.rank=16

It is transformers' AutoModelForSequenceClassification with one output, at the last token of question and
answer. Without arguments, a small one learns from scratch to tell function bodies of Python's library from
the same words in random order.
"""

import sys

from llm.config.finetune import FinetuneConfig
from repro.train.command import command

main = command("reward", FinetuneConfig, "llm.reward", __doc__)

if __name__ == "__main__":
    sys.exit(main())  # before the imports that take seconds

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from llm import pretrained, python_functions
from llm.conversations import Batch, Examples, Row
from llm.finetune import SHOWN, Finetuning
from repro.errors import UserError
from repro.train.task import Task


class RewardModelling(Finetuning):
    """Preference between two answers, by the model of Bradley and Terry (Biometrika 39, 1952).

    The better answer wins with probability sigmoid(its score - the other's). The loss is the mean of its
    negative logarithm over the pairs, initially log 2.
    """

    name = "reward"
    columns = ("chosen", "rejected")
    kind = "SEQ_CLS"
    training_metrics, metrics = Task.training_metrics, Task.metrics  # no perplexity: means over pairs

    def default(self) -> dict[str, Any]:
        """Return the rows used without a data.root."""
        return python_functions.preferences()

    def encoded(self, rows: Sequence[Row], split: str) -> Examples:
        """Return a split as tokens, without pairs that are equal after cutting."""
        made = super().encoded(rows, split)
        differ = [not np.array_equal(better.ids, worse.ids) for better, worse in made.items]
        made.items = [item for item, kept in zip(made.items, differ, strict=True) if kept]
        made.lengths = made.lengths[np.array(differ)]
        made.left_out += differ.count(False)
        if not made.items:
            raise UserError(
                f"data.sequence_length={self.config.data.sequence_length}: chosen and rejected are the same "
                f"in all {split} rows up to there; raise it"
            )
        return made

    def initial(self) -> Any:
        """Return the initial model, without adapters."""
        return pretrained.reward_model(self.config, self.vocab_size, self.pad)

    def num_items(self, batch: Batch) -> float:
        """Return the number of pairs."""
        return float(len(batch.ids) // 2)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the scores of the better answers minus those of the worse [pairs], float32."""
        better, worse = model(input_ids=batch.ids, use_cache=False).logits[:, 0].float().chunk(2)
        return better - worse

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss over pairs in nats, a scalar."""
        return -F.logsigmoid(self.logits(model, batch)).mean()

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], int | Tensor]:
        """Return the sums over pairs of losses, of correct ones (in percent) and of score differences."""
        margin = self.logits(model, batch)
        sums = {
            "loss": -F.logsigmoid(margin).sum(),
            "accuracy": 100 * (margin > 0).sum(),
            "margin": margin.sum(),
        }
        return {f"valid_{key}": value for key, value in sums.items()}, len(margin)

    def examples(self, model: nn.Module) -> list[str]:
        """Return questions with the better and the worse answer, and their scores."""
        rows = self.sets["valid"].items
        few = [rows[i] for i in np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int)]
        batch = self.move(self.collate(few), next(model.parameters()).device)
        numbers = model(input_ids=batch.ids, use_cache=False).logits[:, 0].float().tolist()
        return [
            f"{self.text(better.last()[0])!r} -> {numbers[i]:.3g} for {self.text(better.last()[1])!r}, "
            f"{numbers[i + len(few)]:.3g} for {self.text(worse.last()[1])!r}"
            for i, (better, worse) in enumerate(few)
        ]


RECIPE = RewardModelling  # see repro.ledger.recipes
