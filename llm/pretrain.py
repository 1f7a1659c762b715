"""Pre-train a language model.

    python llm/pretrain.py model=llama_mini optimizer=adam_mini
    python llm/pretrain.py data=text data.root=PATH model=gpt2_125m amp=bf16 steps=10000

Without arguments it trains a small GPT-2 on the source of Python's library, in a few minutes on two CPU
cores, and shows code that it writes. The run folder gets the tokenizer, and a folder `transformers` with the
best weights, which AutoModelForCausalLM and AutoTokenizer load.
"""

import sys

from llm.config.pretrain import LlmConfig
from repro.train.command import command

main = command("llm", LlmConfig, "llm.pretrain", __doc__)

if __name__ == "__main__":
    sys.exit(main())  # before the imports that take seconds

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset
from transformers import PreTrainedModel
from transformers.utils import logging

from llm import models, routing
from llm.generate import for_transformers, sample
from llm.sequences import Batch, sequences
from repro.errors import UserError
from repro.interop import read_weights
from repro.text import corpus
from repro.text.perplexity import entropy, perplexity
from repro.train.data import Sized
from repro.train.task import Task

# continuations in the summary, tokens of each prompt, and maximum tokens of each continuation
PROMPTS, PROMPT, ADDED = 3, 48, 96


class LanguageModelling(Task[Batch]):
    """Prediction of the next token. Losses are in nats, averaged over all tokens but the first of a sequence.

    The training loss of a mixture of experts includes the losses of routers; the validation loss does not.
    """

    name = "llm"
    schema = LlmConfig
    samples = "tokens"
    products = ("tokenizer", models.EXPORT)
    metric = "valid_loss"

    def __init__(self, config: LlmConfig, synthetic: bool = False) -> None:
        self.config = config
        self.per_sample = config.data.sequence_length
        if synthetic:
            self.model, self.vocab_size = {**config.model, "checkpoint": None}, config.tokenizer.vocab_size
        else:
            self.text = corpus.load(config.data, config.tokenizer)
            self.tokenizer = self.text.tokenizer
            ids = {f"{role}_token_id": getattr(self.tokenizer, role) for role in ("bos", "eos")}
            self.model, self.vocab_size = {**ids, **config.model}, self.tokenizer.vocab_size
        self.settings = models.settings(self.model, self.vocab_size)
        self.model_name = str(config.model["name"])
        self.experts = models.is_mixture(self.settings)
        self.family = "mixture of experts" if self.experts else "language model"
        self.classes = self.settings.vocab_size
        length = self.per_sample
        if length > (positions := getattr(self.settings, "max_position_embeddings", length)):
            raise UserError(f"data.sequence_length={length}: the model has positions for {positions} tokens")

    def train_data(self) -> Sized:
        """Return the training text in sequences."""
        return sequences(self.text, "train", self.per_sample, self.config.data.tokens)

    def valid_data(self) -> Sized:
        """Return the sequences of the validation text, or the first eval_batches of them."""
        data, batches = sequences(self.text, "valid", self.per_sample), self.config.eval_batches
        if batches is None:
            return data
        return Subset(data, range(min(len(data), batches * self.config.batch_size)))

    def build_model(self) -> nn.Module:
        """Return the model with its initial weights, or those of model.checkpoint."""
        return models.build(self.model, self.vocab_size, self.config.gradient_checkpointing)

    def synthetic_batch(self, n: int) -> Batch:
        """Return n random sequences."""
        return Batch(torch.randint(self.settings.vocab_size, (n, self.per_sample + 1)))

    def flops(self, batch: Batch) -> float:
        """Return the operations of a forward pass over a micro-batch, counting active experts only."""
        sequences, length = len(batch.ids), batch.ids.shape[1] - 1
        return models.flops(self.settings, sequences * length, length)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross entropy in nats plus the weighted losses of routers, a scalar."""
        output = self._output(model, batch)
        loss = F.cross_entropy(output.logits.float().flatten(0, 1), batch.ids[:, 1:].flatten())
        if self.experts:
            balance = routing.balance(output.router_logits, self.settings.num_experts_per_tok)
            loss = loss + self.settings.router_aux_loss_coef * balance
            loss = loss + self.settings.router_z_loss_coef * routing.z_loss(output.router_logits)
        return loss

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the scores [batch, length, vocabulary] of the next tokens."""
        return self._output(model, batch).logits

    def training_metrics(self, loss: float) -> dict[str, float]:
        """Return the loss, and the perplexity if the loss does not include routers."""
        return {"train_loss": loss} | ({} if self.experts else {"train_perplexity": perplexity(loss)})

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Return the summed cross entropy and the sums of `routing.sums`, and the number of targets."""
        output, targets = self._output(model, batch), batch.ids[:, 1:].flatten()
        sums = {"loss": F.cross_entropy(output.logits.float().flatten(0, 1), targets, reduction="sum")}
        if self.experts:
            sums |= routing.sums(output.router_logits, self.settings.num_experts_per_tok)
        return sums, targets.numel()

    def metrics(self, sums: dict[str, Tensor], count: float) -> dict[str, float]:
        """Return the loss in nats, the perplexity, and the metrics of routers."""
        loss = float(sums["loss"]) / count
        numbers = {"valid_loss": loss, "valid_perplexity": perplexity(loss)}
        return numbers | (routing.metrics(sums, count) if self.experts else {})

    def _output(self, model: nn.Module, batch: Batch) -> Any:
        options = {"output_router_logits": True} if self.experts else {}
        return model(input_ids=batch.ids[:, :-1], use_cache=False, **options)

    def begin(self, folder: Path) -> None:
        """Save the tokenizer in the run folder."""
        self.tokenizer.save(folder / "tokenizer")

    def examples(self, model: nn.Module) -> list[str]:
        """Return the entropy of the tokens' frequencies, and prompts with continuations after a |."""
        data = sequences(self.text, "valid", self.per_sample)
        counts = np.bincount(self.text.split("valid").ids)
        begins = [data[i][:PROMPT].tolist() for i in np.linspace(0, len(data) - 1, PROMPTS).astype(int)]
        prompts = [self.tokenizer.decode(ids) for ids in begins]
        how = self.config.sampling
        added = sample(
            cast(PreTrainedModel, model),
            for_transformers(self.tokenizer),
            prompts,
            max_new_tokens=min(ADDED, how.max_new_tokens),
            temperature=how.temperature,
            top_p=how.top_p,
        )
        lines = [f"tokens have {entropy(counts):.3g} nats by their frequency alone"]
        for prompt, text in zip(prompts, added, strict=True):
            lines += ["", *f"{prompt}|{text}".splitlines()]
        return lines

    def finish(self, folder: Path) -> None:
        """Export the best weights and the tokenizer to the run folder, in the format of transformers."""
        logging.disable_progress_bar()
        model = models.build({**self.model, "checkpoint": None}, self.vocab_size)
        model.load_state_dict(read_weights(folder)[0])
        model.save_pretrained(folder / models.EXPORT)
        self.tokenizer.save(folder / models.EXPORT)


RECIPE = LanguageModelling  # see repro.ledger.recipes
