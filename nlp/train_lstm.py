"""Train an LSTM language model.

    python nlp/train_lstm.py optimizer=adamw epochs=1
    python nlp/train_lstm.py data=ptb data.root=PATH model=lstm_3

Without arguments it trains a small one on Python's documentation, in a few minutes on two CPU cores.
"""

import sys

from nlp.config.lstm import LSTMTrainConfig
from repro.train.command import command

main = command("lstm", LSTMTrainConfig, "nlp.train_lstm", __doc__)

if __name__ == "__main__":
    sys.exit(main())  # before the imports that take seconds

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlp.lstm import Hidden, LSTMLanguageModel, activation_penalty
from repro.text.perplexity import perplexity
from repro.text.streams import Batch, Streams, StreamTask

PROMPTS, PROMPT, LONGEST = 4, 6, 30  # continuations in the summary, and words of each prompt and continuation
TEMPERATURE = 0.7  # of the continuations; the most likely words would repeat themselves


class LanguageModelling(StreamTask):
    """Prediction of the next word of a text, measured by perplexity per token."""

    name = "lstm"
    schema = LSTMTrainConfig

    def __init__(self, config: LSTMTrainConfig, synthetic: bool = False) -> None:
        self.config = config
        self.model_name = f"{config.model.nlayers}-layer LSTM"
        super().__init__(config.data, config.tokenizer, config.data.tgt_len, synthetic)

    def train_data(self) -> Streams:
        """Return batch_size streams of the training text."""
        return self._streams("train", self.config.batch_size, "batch_size")

    def valid_data(self) -> Streams:
        """Return streams of the validation text."""
        return self._streams("valid", self.config.data.eval_batch_size, "data.eval_batch_size")

    def test_data(self) -> Streams | None:
        """Return streams of the test text, or None if the source has none."""
        if "test" not in self.corpus.splits:
            return None
        return self._streams("test", self.config.data.test_batch_size, "data.test_batch_size")

    def _streams(self, split: str, streams: int, key: str) -> Streams:
        ids, tgt_len = self.corpus.split(split).ids, self.config.data.tgt_len
        return Streams(ids, streams, tgt_len, f"{split} text", key)

    def build_model(self) -> nn.Module:
        """Return the model with its initial weights."""
        return LSTMLanguageModel(self.config.model, self.vocab_size)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross entropy in nats plus the penalties on activations, a scalar."""
        output = model(batch.ids, self._hidden())
        self._keep(output.hidden)
        loss = F.cross_entropy(output.logits.flatten(0, 1).float(), batch.targets.flatten())
        return loss + activation_penalty(output, self.config.model.alpha, self.config.model.beta)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the scores [streams, tgt_len, words] of the next words, without earlier segments."""
        return model(batch.ids).logits

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Return the summed cross entropy of a batch, which continues where the one before ended."""
        output = model(batch.ids, self._hidden())
        self._keep(output.hidden)
        targets = batch.targets
        loss = F.cross_entropy(output.logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
        return {"valid_loss": loss}, targets.numel()

    def training_metrics(self, loss: float) -> dict[str, float]:
        """Return the loss, and the perplexity if the loss has no penalties."""
        penalised = self.config.model.alpha or self.config.model.beta
        return {"train_loss": loss} | ({} if penalised else {"train_perplexity": perplexity(loss)})

    def examples(self, model: nn.Module) -> list[str]:
        """Return beginnings of lines of the validation text, each with the model's continuation after a |."""
        text, tokenizer = self.corpus.split("valid"), self.corpus.tokenizer
        long = text.lines[:-1][np.diff(text.lines) > PROMPT]
        generator = torch.Generator().manual_seed(0)
        shown = []
        for begin in long[:: max(1, len(long) // PROMPTS)][:PROMPTS]:
            prompt = text.ids[begin : begin + PROMPT].tolist()
            added = continuation(model, prompt, tokenizer.eos, tokenizer.unk, generator)
            shown.append(f"{tokenizer.decode(prompt)} | {tokenizer.decode(added)}")
        return shown

    def _hidden(self) -> Hidden | None:
        if not self.state:
            return None
        return [(self.state[f"h{i}"], self.state[f"c{i}"]) for i in range(self.config.model.nlayers)]

    def _keep(self, hidden: Hidden) -> None:
        for i, (h, c) in enumerate(hidden):
            self.state[f"h{i}"], self.state[f"c{i}"] = h.detach(), c.detach()


@torch.no_grad()
def continuation(
    model: nn.Module, prompt: list[int], end: int | None, unknown: int | None, generator: torch.Generator
) -> list[int]:
    """Sample up to LONGEST tokens after `prompt`, up to the token `end`, and never the token `unknown`."""
    device = next(model.parameters()).device
    ids, hidden, drawn = prompt, None, list[int]()
    while len(drawn) < LONGEST:
        output = model(torch.tensor([ids], device=device), hidden)
        hidden, scores = output.hidden, output.logits[0, -1].float().cpu()
        if unknown is not None:
            scores[unknown] = -math.inf
        drawn.append(int(torch.multinomial((scores / TEMPERATURE).softmax(0), 1, generator=generator)))
        if drawn[-1] == end:
            return drawn[:-1]
        ids = drawn[-1:]
    return drawn


RECIPE = LanguageModelling  # see repro.ledger.recipes
