"""Sequences with hidden tokens, as BERT is pre-trained on (Devlin et al., arXiv 1810.04805, section 3.1).

A share p of the tokens is to be predicted. Most of these are replaced by the mask token, some by a random
one, and some stay unchanged. As in fairseq, their number among n tokens is p n, rounded up or down at random
so that the mean is right. They are drawn again every time a sequence is read (RoBERTa's dynamic masking).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from nlp.blocks import Blocks

IGNORED = -100  # cross_entropy's target for "none"


class Batch(NamedTuple):
    """Sequences with hidden tokens, padded to the longest.

    ids: [batch, length], int64, with hidden tokens replaced.
    attention_mask: [batch, length], bool, False at padding; [batch, 0] if nothing is padded.
    places: of the hidden tokens [batch, n], int64; 0 at padding.
    targets: the hidden tokens [batch, n], int64; IGNORED at padding.
    """

    ids: Tensor
    attention_mask: Tensor
    places: Tensor
    targets: Tensor


class PairBatch(NamedTuple):
    """The same fields as `Batch`, of pairs of segments, and two more.

    token_type_ids: the segment of each token [batch, length], int64.
    others: [batch], int64; 1 if the second segment does not follow the first.
    """

    ids: Tensor
    attention_mask: Tensor
    places: Tensor
    targets: Tensor
    token_type_ids: Tensor
    others: Tensor


@dataclass
class Masking:
    """Chooses the tokens to hide, and what replaces them.

    Attributes:
        rate: share of the tokens to be predicted.
        leave, random: shares of these that stay unchanged, and that become a random token.
        mask: the mask token.
        ordinary: tokens that a random one is drawn from [ordinary], int.
        eligible: for each token of the vocabulary, whether it may be hidden [vocabulary], bool.
    """

    rate: float
    leave: float
    random: float
    mask: int
    ordinary: np.ndarray
    eligible: np.ndarray

    def __call__(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return a changed copy of a sequence [length], and the sorted places to be predicted [n].

        There is at least one, unless no token of the sequence is eligible.
        """
        candidates = np.flatnonzero(self.eligible[ids])
        number = max(1, int(self.rate * len(candidates) + rng.random()))
        places = np.sort(rng.choice(candidates, min(number, len(candidates)), replace=False))
        fate = rng.random(len(places))
        replaced, exchanged = fate >= self.leave + self.random, fate < self.random
        changed = ids.copy()
        changed[places[replaced]] = self.mask
        changed[places[exchanged]] = rng.choice(self.ordinary, exchanged.sum())
        return changed, places


class MaskedBlocks(Dataset[tuple[Tensor, ...]]):
    """Blocks after <s>, as (tokens [length], places [n], original tokens there [n]), int64.

    The masks come from torch's global generator, which the loop seeds for each sample and epoch; with `fixed`
    they depend only on the index.
    """

    def __init__(self, blocks: Blocks, masking: Masking, bos: int, fixed: bool = False) -> None:
        self.blocks, self.masking, self.bos, self.fixed = blocks, masking, bos, fixed

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        rng = np.random.default_rng(index if self.fixed else int(torch.randint(2**62, ())))
        ids, *rest = self.draw(index, rng)
        changed, places = self.masking(ids, rng)
        return tuple(torch.from_numpy(np.asarray(x, np.int64)) for x in (changed, places, ids[places], *rest))

    def draw(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Return the tokens of a sample [length], and any further arrays of it."""
        return (np.insert(self.blocks[index], 0, self.bos),)


class MaskedPairs(MaskedBlocks):
    """Pairs <s> A </s> B </s>, as above, and (token_type_ids [length], 1 if B does not follow A []).

    A and B are the parts of a block cut between two of its lines, or within its only line. In half of the
    pairs B comes from another block. (BERT's own preparation also shortens a tenth of the sequences, and
    reuses lines that another block's have replaced.)
    """

    def draw(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Return a pair's tokens [length], token types [length], and whether B is from another block."""
        first, second = self.part(index, rng)
        other = len(self) > 1 and rng.random() < 0.5
        if other:
            _, second = self.part((index + int(rng.integers(1, len(self)))) % len(self), rng)
            second = second[: self.blocks.size - 1 - len(first)]  # a block has at least one </s>
        ends = [self.blocks.eos]
        ids = np.concatenate([[self.bos], first, ends, second, ends])
        token_type_ids = np.arange(len(ids)) >= len(first) + 2
        return ids, token_type_ids, np.array(other)

    def part(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of the two parts of a block, each [length], without the ends of lines."""
        text, (first, end) = self.blocks.text, self.blocks.lines_of(index)
        begin, stop = int(text.lines[first]), int(text.lines[end])
        if end - first > 1:
            middle = int(text.lines[rng.integers(first + 1, end)])
        else:
            middle = begin + int(rng.integers(1, max(stop - begin, 2)))
        return text.ids[begin:middle], text.ids[middle:stop]


def collate(samples: Sequence[tuple[Tensor, ...]], pad: int) -> Batch | PairBatch:
    """Return a batch of the samples of a MaskedBlocks, or of a MaskedPairs: see the batches for shapes."""
    ids, places, targets, *pair = map(list, zip(*samples, strict=True))
    lengths = torch.tensor([len(x) for x in ids])
    longest = int(lengths.max())
    attention_mask = torch.arange(longest) < lengths[:, None]
    batch = Batch(
        pad_sequence(ids, True, pad),
        attention_mask[:, :0] if bool(attention_mask.all()) else attention_mask,
        pad_sequence(places, True, 0),
        pad_sequence(targets, True, IGNORED),
    )
    return PairBatch(*batch, pad_sequence(pair[0], True, 0), torch.stack(pair[1])) if pair else batch
