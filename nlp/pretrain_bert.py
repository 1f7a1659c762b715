"""Pre-train BERT or RoBERTa.

    python nlp/pretrain_bert.py optimizer=adamw steps=300
    python nlp/pretrain_bert.py data=wikitext103 data.root=PATH model=bert_base tokenizer=wordpiece

Without arguments it trains a small one on the documentation of Python's library, in a few minutes on two CPU
cores. The run folder gets the tokenizer, and a folder `transformers` with the best weights, which
AutoModelForMaskedLM.from_pretrained loads; nlp/finetune_glue.py can start from either.
"""

import sys

from nlp.config.bert import BertConfig
from repro.train.command import command

main = command("bert", BertConfig, "nlp.pretrain_bert", __doc__)

if __name__ == "__main__":
    sys.exit(main())  # before the imports that take seconds

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging

from nlp.bert import Untrained, attention, build_masked_lm, in_transformers, longest
from nlp.blocks import Blocks
from nlp.masking import IGNORED, Batch, MaskedBlocks, MaskedPairs, Masking, PairBatch
from repro.errors import UserError
from repro.interop import read_weights
from repro.text import corpus
from repro.text.perplexity import entropy, perplexity
from repro.train.data import Plan, Sized, shuffled
from repro.train.task import Task

EXPORT = "transformers"
EXAMPLES, FILLS, CONTEXT = 6, 3, 12  # hidden words shown, predictions of each, and tokens on either side


class Pretraining(Task[Batch | PairBatch]):
    """Prediction of hidden tokens, measured on the validation text with fixed masks.

    Losses are recorded in bits, as means over the hidden tokens.
    """

    name = "bert"
    schema = BertConfig
    samples = "tokens"
    products = ("tokenizer", EXPORT)
    metric = "valid_loss"

    def __init__(self, config: BertConfig, synthetic: bool = False) -> None:
        self.config = config
        self.pairs = config.model.next_sentence
        self.model_name = f"{config.model.name} {config.model.num_hidden_layers}x{config.model.hidden_size}"
        if synthetic:
            self.per_sample = config.data.block_size
            self.tokenizer: Any = Untrained(config.model.vocab_size or config.tokenizer.size)
            return
        text = corpus.load(config.data, config.tokenizer)
        self.tokenizer = text.tokenizer
        self.masking = self._masking()
        self.train_blocks, self.valid_blocks = (self._blocks(text, split) for split in ("train", "valid"))
        begun = len(self.train_blocks)  # sequences, each with <s> before the block
        self.per_sample = round((self.train_blocks.tokens + begun) / begun)

    def _masking(self) -> Masking:
        data, tokenizer = self.config.data, self.tokenizer
        ids = {name: getattr(tokenizer, name) for name in ("pad", "bos", "eos", "mask")}
        for name, token in ids.items():
            if token is None:
                raise UserError(f"tokenizer.name={self.config.tokenizer.name}: has no {name} token for BERT")
        max_positions = longest(self.config.model, tokenizer)
        if data.block_size > max_positions:
            room = f"{self.config.model.max_position_embeddings} has positions for {max_positions} tokens"
            raise UserError(f"data.block_size={data.block_size}: model.max_position_embeddings={room}")
        specials = [*ids.values(), *([] if tokenizer.unk is None else [tokenizer.unk])]
        eligible = np.ones(tokenizer.vocab_size, bool)
        if not data.mask_specials:
            eligible[list(ids.values())] = False
        return Masking(
            data.mask_prob,
            data.leave_unmasked_prob,
            data.random_token_prob,
            ids["mask"],
            np.setdiff1d(np.arange(tokenizer.vocab_size), specials),
            eligible,
        )

    def _blocks(self, text: Any, split: str) -> Blocks:
        data = self.config.data
        size = data.block_size - (2 if self.pairs else 1)  # without <s>, and </s> between two parts
        blocks = Blocks(text.split(split), data.block, size, self.tokenizer.eos)
        if not len(blocks):
            long = f"no line of the {split} text is as short; data.block=none cuts lines"
            raise UserError(f"data.block_size={data.block_size}: {long}")
        return blocks

    def train_data(self) -> Sized:
        """Return the training sequences, with new masks in every epoch."""
        return self._masked(self.train_blocks)

    def valid_data(self) -> MaskedBlocks:
        """Return the validation sequences, with the same masks in every evaluation."""
        return self._masked(self.valid_blocks)

    def _masked(self, blocks: Blocks) -> MaskedBlocks:
        kind = MaskedPairs if self.pairs else MaskedBlocks
        return kind(blocks, self.masking, self.tokenizer.bos, self.tokenizer.pad)

    def plan(self, data: Sized, config: Any) -> Plan:
        """Return the sequences in a new order every epoch; the last step may be smaller."""
        return shuffled(len(data), config.batch_size, config.seed, config.repeats, drop_last=False)

    def num_items(self, batch: Batch | PairBatch) -> float:
        """Return the number of hidden tokens."""
        return float((batch.targets != IGNORED).sum())

    def begin(self, folder: Path) -> None:
        """Save the tokenizer in the run folder, and print the numbers of sequences."""
        self.tokenizer.save(folder / "tokenizer")
        for split, blocks in (("train", self.train_blocks), ("valid", self.valid_blocks)):
            published = getattr(self.config.data, f"{split}_sequences")
            known = "" if published is None else f" (published: {published:,})"
            out = f"; {blocks.left_out:,} lines are longer and left out" if blocks.left_out else ""
            size = self.config.data.block_size
            print(f"{split}: {len(blocks):,} sequences of at most {size} tokens{known}{out}")

    def build_model(self) -> nn.Module:
        """Return the model with its initial weights."""
        return build_masked_lm(self.config.model, self.tokenizer)

    def synthetic_batch(self, n: int) -> Batch | PairBatch:
        """Return n random sequences of full length."""
        length, words = self.config.data.block_size, self.tokenizer.vocab_size
        shape = n, max(1, round(self.config.data.mask_prob * length))
        ids, attention_mask = torch.randint(words, (n, length)), torch.ones(n, 0, dtype=torch.bool)
        batch = Batch(ids, attention_mask, torch.randint(length, shape), torch.randint(words, shape))
        return (
            PairBatch(*batch, torch.randint(2, (n, length)), torch.randint(2, (n,))) if self.pairs else batch
        )

    def loss(self, model: nn.Module, batch: Batch | PairBatch) -> Tensor:
        """Return the mean cross entropy over the hidden tokens in nats, with pairs plus theirs; a scalar."""
        (words, count), pairs = self._losses(*self._scores(model, batch), batch)
        return words / count.clamp(min=1) + (pairs / len(batch.ids) if pairs is not None else 0)

    def logits(self, model: nn.Module, batch: Batch | PairBatch) -> Tensor:
        """Return the scores of each token [hidden, vocabulary] at the hidden places of the batch."""
        return self._scores(model, batch)[0][batch.targets != IGNORED]

    def training_metrics(self, loss: float) -> dict[str, float]:
        """Return the loss in bits and the perplexity; with pairs, both of the sum of the two losses."""
        return bits("train", loss)

    def evaluate(self, model: nn.Module, batch: Batch | PairBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Return the sums of losses, in nats, and of correct predictions, and the number of hidden tokens."""
        scores, answers = self._scores(model, batch)
        (words, count), pairs = self._losses(scores, answers, batch)
        sums = {"words": words, "right": (scores.argmax(-1) == batch.targets).sum()}
        if isinstance(batch, PairBatch) and answers is not None:
            sums |= {"pairs": pairs, "pairs_right": (answers.argmax(-1) == batch.others).sum()}
            sums["pairs_count"] = torch.ones_like(batch.others).sum()
        return sums, count

    def metrics(self, sums: dict[str, Tensor], count: float) -> dict[str, float]:
        """Return loss (bits), perplexity and accuracy (%) of hidden tokens, and of pairs."""
        numbers = bits("valid", float(sums["words"]) / count)
        numbers["valid_accuracy"] = 100 * float(sums["right"]) / count
        if self.pairs:
            number = float(sums["pairs_count"])
            numbers["valid_nsp_loss"] = float(sums["pairs"]) / number / math.log(2)
            numbers["valid_nsp_accuracy"] = 100 * float(sums["pairs_right"]) / number
        return numbers

    def _scores(self, model: nn.Module, batch: Batch | PairBatch) -> tuple[Tensor, Tensor | None]:
        """Return the scores of tokens [batch, n, vocabulary] and those of pairs [batch, 2], if any."""
        token_type_ids = batch.token_type_ids if isinstance(batch, PairBatch) else None
        mask = attention(batch.attention_mask)
        scores, answers = model(batch.ids, mask, batch.places, token_type_ids)
        return scores.float(), answers

    def _losses(
        self, scores: Tensor, answers: Tensor | None, batch: Batch | PairBatch
    ) -> tuple[tuple[Tensor, Tensor], Any]:
        """Return the summed loss of words with their number, and the summed loss of pairs, if any."""
        targets = batch.targets.flatten()
        words = F.cross_entropy(scores.flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum")
        pairs = None
        if isinstance(batch, PairBatch) and answers is not None:
            pairs = F.cross_entropy(answers.float(), batch.others, reduction="sum")
        return (words, (targets != IGNORED).sum()), pairs

    def finish(self, folder: Path) -> None:
        """Export the best weights and the tokenizer to the run folder, in the format of transformers."""
        model = self.build_model()
        model.load_state_dict(read_weights(folder)[0])
        logging.disable_progress_bar()
        in_transformers(model).save_pretrained(folder / EXPORT)
        self.tokenizer.save(folder / EXPORT)

    def examples(self, model: nn.Module) -> list[str]:
        """Return the entropy of the tokens' frequencies, and hidden words with the model's predictions."""
        counts = np.bincount(self.valid_blocks.text.ids)
        alone = entropy(counts) / math.log(2)
        data, lines = self.valid_data(), [f"tokens have {alone:.3g} bits by their frequency alone"]
        device = next(model.parameters()).device
        for index in np.linspace(0, len(data) - 1, min(EXAMPLES, len(data))).astype(int):
            batch = data[index]
            scores, _ = self._scores(model, self.move(batch, device))
            lines += self._example(batch, scores[0].softmax(-1).cpu())
        return lines

    def _example(self, batch: Batch | PairBatch, chances: Tensor) -> list[str]:
        """Return a line on the middle hidden word of the batch's only sequence, none if no word is hidden.

        `chances` are the model's probabilities [n, vocabulary] of the words at the hidden places.
        """
        ids, places, targets = batch.ids[0], batch.places[0], batch.targets[0]
        masked = (ids[places] == self.tokenizer.mask).nonzero().flatten().tolist()
        if not masked:
            return []
        which = masked[len(masked) // 2]
        place, decode = int(places[which]), self.tokenizer.decode
        before, after = ids[max(place - CONTEXT, 0) : place], ids[place + 1 : place + 1 + CONTEXT]
        best = chances[which].topk(FILLS)
        fills = ", ".join(
            f"{decode([token]).strip()!r} {chance:.0%}"
            for token, chance in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        )
        truth = decode([int(targets[which])]).strip()
        line = f"... {decode(before.tolist())} [{truth}] {decode(after.tolist())} ... -> {fills}"
        return [" ".join(line.split())]


def bits(split: str, nats: float) -> dict[str, float]:
    """Return a loss in bits, and the perplexity."""
    return {f"{split}_loss": nats / math.log(2), f"{split}_perplexity": perplexity(nats)}


RECIPE = Pretraining  # see repro.ledger.recipes
