"""Train Transformer-XL on text.

    python nlp/train_transformer_xl.py optimizer=adamw epochs=1
    python nlp/train_transformer_xl.py data=wikitext103 data.root=PATH model=transformer_xl_base

Without arguments it trains a small one on Python's documentation, in a few minutes on two CPU cores.
"""

import sys

from nlp.config.transformer_xl import TransformerXLConfig
from repro.train.command import command

main = command("transformer_xl", TransformerXLConfig, "nlp.train_transformer_xl", __doc__)

if __name__ == "__main__":
    sys.exit(main())  # before the imports that take seconds

from pathlib import Path

import torch
from torch import Tensor, nn

from nlp.transformer_xl import Memory, Reach, TransformerXL, empty_memory
from repro.errors import UserError
from repro.interop import read_weights
from repro.interop.checkpoint import Weights
from repro.text.perplexity import perplexity
from repro.text.streams import Batch, Streams, StreamTask
from repro.train.checkpoint import first_difference

# continuations in the summary, tokens of each prompt and continuation, and top-k of the sampling
PROMPTS, PROMPT, CONTINUED, LIKELIEST = 3, 24, 48, 40


class LanguageModelling(StreamTask):
    """Prediction of the next word, measured by perplexity with a memory that runs through the text."""

    name = "transformer_xl"
    schema = TransformerXLConfig

    def __init__(self, config: TransformerXLConfig, synthetic: bool = False) -> None:
        self.config, self.synthetic = config, synthetic
        super().__init__(config.data, config.tokenizer, config.tgt_len, synthetic)
        self.model_name = f"Transformer-XL, {config.model.n_layer} layers of {config.model.d_model}"
        if config.model.cutoffs and config.model.cutoffs[-1] >= self.vocab_size:
            cutoffs = config.model.cutoffs
            raise UserError(f"model.cutoffs={cutoffs}: the vocabulary has only {self.vocab_size:,} words")
        self.reach = Reach(config.eval_same_length, config.eval_clamp_len)

    def train_data(self) -> Streams:
        """Return `batch_size` streams of the training text."""
        ids, expected = self.corpus.split("train").ids, self.config.train_tokens
        if expected is not None and len(ids) != expected:
            other = "it is another text, or tokenised differently; null takes any"
            raise UserError(f"train_tokens={expected}: the training text has {len(ids)}: {other}")
        return Streams(ids, self.config.batch_size, self.config.tgt_len, "training text")

    def valid_data(self) -> Streams:
        """Return streams of the validation text."""
        return self._evaluation_streams("valid")

    def test_data(self) -> Streams | None:
        """Return streams of the test text, or None if there is none."""
        return self._evaluation_streams("test") if "test" in self.corpus.splits else None

    def _evaluation_streams(self, split: str) -> Streams:
        config = self.config
        ids, key = self.corpus.split(split).ids, "evaluation.batch_size"
        return Streams(ids, config.evaluation.batch_size, config.eval_tgt_len, f"{split} text", key)

    def build_model(self) -> TransformerXL:
        """Return the model with its initial weights."""
        config = self.config.model
        model = TransformerXL(config, self.vocab_size)
        if config.checkpoint is not None and not self.synthetic:
            load(model, read_weights(Path(config.checkpoint).expanduser())[0], config.checkpoint)
        return model

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean negative log-likelihood of the targets in nats, a scalar."""
        words, targets = batch
        losses, memory = model(words, targets, self._memory(words, self.config.model.mem_len))
        self.state |= memory._asdict()
        return losses.mean()

    def training_metrics(self, loss: float) -> dict[str, float]:
        """Return the loss in nats and the perplexity, its exponential."""
        return {"train_loss": loss, "train_perplexity": perplexity(loss)}

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Return the summed negative log-likelihood of the targets, and their number."""
        words, targets = batch
        losses, memory = model(words, targets, self._memory(words, self.config.eval_mem_len), self.reach)
        self.state |= memory._asdict()
        return {"valid_loss": losses.double().sum()}, targets.numel()

    def _memory(self, words: Tensor, mem_len: int) -> Memory:
        if not self.state:
            return empty_memory(self.config.model, len(words), words.device, mem_len)
        return Memory(**self.state)

    def examples(self, model: nn.Module) -> list[str]:
        """Return continuations of excerpts of the validation text, sampled from the 40 most likely words."""
        assert isinstance(model, TransformerXL)
        tokenizer, split = self.corpus.tokenizer, self.corpus.split("valid")
        device = next(model.parameters()).device
        generator = torch.Generator().manual_seed(self.config.seed)
        found = []
        for part in range(PROMPTS):
            begin = int(split.lines[len(split.lines) * part // PROMPTS])
            prompt = [int(token) for token in split.ids[begin : begin + PROMPT]]
            memory = empty_memory(self.config.model, 1, device, self.config.eval_mem_len)
            words, drawn = torch.tensor([prompt], device=device), list[int]()
            for _ in range(CONTINUED):
                scores, memory = model.log_prob(words, memory, self.reach)
                best = scores[0].float().cpu().topk(min(LIKELIEST, scores.shape[1]))
                word = best.indices[torch.multinomial(best.values.exp(), 1, generator=generator)]
                drawn.append(int(word))
                words = word[None].to(device)
            texts = (" / ".join(tokenizer.decode(ids).split("\n")) for ids in (prompt, drawn))
            found.append(" => ".join(texts))
        return found


def load(model: nn.Module, weights: Weights, source: str) -> None:
    """Load weights, all of which must fit; of tensors that the model ties, one is enough.

    Raises:
        UserError: they do not fit; it names the first difference.
    """
    own = model.state_dict()
    given = {own[name].data_ptr(): tensor for name, tensor in weights.items() if name in own}
    weights = {name: given[p.data_ptr()] for name, p in own.items() if p.data_ptr() in given} | weights
    difference = first_difference(*({k: x.shape for k, x in each.items()} for each in (own, weights)))
    if difference is not None:
        raise UserError(f"model.checkpoint={source} does not fit: {difference}")
    model.load_state_dict(weights)


RECIPE = LanguageModelling  # see repro.ledger.recipes
