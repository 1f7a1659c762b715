"""Fine-tune all weights of a language model, or only low-rank adapters, on questions with answers.

    python llm/finetune.py optimizer=adan epochs=1
    python llm/finetune.py model.checkpoint=RUN data.root=PATH lora.rank=16

Without arguments it trains a small model from scratch to write function bodies of Python's library, in about
a minute on two CPU cores. The run folder gets the tokenizer, and at the end a folder `transformers` with the
best weights, adapters merged, which llm/reward.py and llm/remax.py start from. `adapter` has the adapters.
"""

import sys

from llm.config.finetune import FinetuneConfig
from repro.train.command import command

main = command("finetune", FinetuneConfig, "llm.finetune", __doc__)

if __name__ == "__main__":
    sys.exit(main())  # before the imports that take seconds

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm import models, pretrained, python_functions
from llm.conversations import Batch, Example, Examples, Row, collate, read
from llm.generate import complete, end_of_text, pad_left
from repro.errors import UserError
from repro.text.perplexity import perplexity
from repro.train.config import TrainConfig
from repro.train.data import Plan, Sized, shuffled
from repro.train.task import Task

SHOWN, LONGEST = 4, 64  # examples in the summary, and maximum tokens of their completions


class ConversationTask(Task):
    """A language model and conversations: what llm/finetune.py, llm/reward.py and llm/remax.py share."""

    schema = FinetuneConfig
    samples = "tokens"
    products = ("tokenizer", models.EXPORT, pretrained.ADAPTER)
    metric = "valid_loss"
    columns: tuple[str, ...] = ("completion",)  # of the answers
    kind = "CAUSAL_LM"  # of the model, as peft names it

    def __init__(self, config: FinetuneConfig, synthetic: bool = False) -> None:
        if synthetic:
            self.config = replace(config, model={**config.model, "checkpoint": None})
            self.vocab_size, self.pad = config.tokenizer.vocab_size, 0
            return
        self.config = config
        rows = read(config.data, self.default)
        self.tokenizer = pretrained.tokenizer_of(config, lambda: texts(rows["train"], self.columns))
        self.vocab_size, self.pad = len(self.tokenizer), pretrained.padding(self.tokenizer)
        self.sets = {split: self.encoded(found, split) for split, found in rows.items()}
        self.per_sample = round(len(self.columns) * float(np.mean(self.sets["train"].lengths)))
        source = config.model.get("checkpoint") or f"{config.model.get('name')} from scratch"
        self.model_name = f"{source}, LoRA {config.lora.rank}" if config.lora.rank else str(source)

    def default(self) -> dict[str, Any]:
        """Return the rows used without a data.root."""
        return python_functions.pairs()

    def encoded(self, rows: Sequence[Row], split: str) -> Examples:
        """Return a split as tokens."""
        return Examples(rows, self.columns, self.tokenizer, self.config.data.sequence_length, split)

    def train_data(self) -> Sized:
        """Return the training examples."""
        return self.sets["train"]

    def valid_data(self) -> Sized:
        """Return the validation examples."""
        return self.sets["valid"]

    def plan(self, data: Sized, config: TrainConfig) -> Plan:
        """Return the examples in a new order every epoch; the last step may be smaller."""
        return shuffled(len(data), config.batch_size, config.seed, config.repeats, drop_last=False)

    def begin(self, folder: Path) -> None:
        """Save the tokenizer in the run folder, and print the size of the data."""
        self.tokenizer.save_pretrained(folder / "tokenizer")
        for split, found in self.sets.items():
            out = f"; of {found.left_out:,} no answer fits" if found.left_out else ""
            print(f"{split}: {len(found):,} rows, {np.mean(found.lengths):.0f} tokens in the mean{out}")

    def initial(self) -> Any:
        """Return the initial model, without adapters."""
        model = pretrained.language_model(self.config, self.vocab_size)
        positions = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
        if self.config.data.sequence_length > positions:
            length = self.config.data.sequence_length
            raise UserError(f"data.sequence_length={length}: the model has positions for {positions} tokens")
        return model

    def build_model(self) -> nn.Module:
        """Return the model with its initial weights, and with adapters if lora.rank is set."""
        model = self.initial()
        self.shape = model.config
        return pretrained.adapted(model, self.config.lora, self.kind)

    def answers(self, model: Any, prompts: list[list[int]], longest: int, **options: Any) -> list[list[int]]:
        """Return the tokens, including the end of text, that the model generates after each prompt."""
        ids, mask = (tensor.to(model.device) for tensor in pad_left(prompts, self.pad))
        left = (getattr(model.config, "max_position_embeddings", None) or sys.maxsize) - ids.shape[1]
        if left < 1:
            return [[] for _ in prompts]
        eos = end_of_text(model, self.tokenizer)
        made, kept = complete(model, ids, mask, max_new_tokens=min(longest, left), eos=eos, **options)
        return [row[:keep] for row, keep in zip(made.tolist(), kept.sum(1).tolist(), strict=True)]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def finish(self, folder: Path) -> None:
        """Export the best weights and the tokenizer to the run folder, in the format of transformers."""
        pretrained.export(self.build_model(), self.tokenizer, folder)


class Finetuning(ConversationTask):
    """Answers to questions, measured by the loss on the tokens of the answers alone."""

    name = "finetune"

    def collate(self, samples: list[list[Example]]) -> Batch:
        """Return a batch [columns x samples, length]: column after column."""
        return collate([item[i] for i in range(len(self.columns)) for item in samples], self.pad)

    def num_items(self, batch: Batch) -> float:
        """Return the number of answer tokens that are predicted."""
        return float(batch.answer[:, 1:].sum())

    def flops(self, batch: Batch) -> float:
        """Return the operations of a forward pass over a batch."""
        rows, length = batch.ids.shape
        return models.flops(self.shape, rows * length, length)

    def synthetic_batch(self, n: int) -> Batch:
        """Return random tokens of n samples, all of answers."""
        shape = n * len(self.columns), self.config.data.sequence_length
        ids = torch.randint(self.vocab_size or self.config.model["vocab_size"], shape)
        return Batch(ids, torch.ones(shape, dtype=torch.bool))

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the scores of the tokens of answers [tokens, vocabulary], float32."""
        scores: Tensor = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
        return scores[batch.answer[:, 1:]].float()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross entropy over the tokens of answers in nats, a scalar."""
        return F.cross_entropy(self.logits(model, batch), batch.ids[:, 1:][batch.answer[:, 1:]])

    def training_metrics(self, loss: float) -> dict[str, float]:
        """Return the loss in nats and the perplexity."""
        return {"train_loss": loss, "train_perplexity": perplexity(loss)}

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], int | Tensor]:
        """Return the summed cross entropy over the tokens of answers, and their number."""
        targets = batch.ids[:, 1:][batch.answer[:, 1:]]
        loss = F.cross_entropy(self.logits(model, batch), targets, reduction="sum")
        return {"valid_loss": loss}, len(targets)

    def metrics(self, sums: dict[str, Tensor], count: float) -> dict[str, float]:
        """Return the loss in nats and the perplexity, per token of an answer."""
        loss = float(sums["valid_loss"]) / count
        return {"valid_loss": loss, "valid_perplexity": perplexity(loss)}

    def examples(self, model: nn.Module) -> list[str]:
        """Return questions with the model's most likely answers, and with those of the data."""
        rows = self.sets["valid"].items
        few = [rows[i][0].last() for i in np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int)]
        made = self.answers(pretrained.bare(model), [prompt for prompt, _ in few], LONGEST, temperature=0.0)
        return [
            f"{self.text(prompt)!r} -> {self.text(ids)!r} (data: {self.text(truth)!r})"
            for (prompt, truth), ids in zip(few, made, strict=True)
        ]


def texts(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Return all text in rows, to make a tokenizer from."""
    values = [row.columns.get(name) for row in rows for name in ("prompt", *columns, "messages")]
    found = []
    for value in values:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, list):
            found += [str(message.get("content")) for message in value if isinstance(message, dict)]
    return found


RECIPE = Finetuning  # see repro.ledger.recipes
