"""Sequences with hidden tokens, as BERT is pre-trained on (Devlin et al., arXiv 1810.04805, section 3.1).

A share p of the tokens is to be predicted. Most of these are replaced by the mask token, some by a random
one, and some stay unchanged. As in fairseq, their number among n tokens is p n, rounded up or down at random
so that the mean is right. They are drawn again every time a sequence is read (RoBERTa's dynamic masking).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nlp.blocks import Blocks
from repro.train.data import FIXED
from repro.train.seeding import Draws

IGNORED = -100  # cross_entropy's target for "none"

# Columns of the draws: of a sequence, then three of each token, from TOKENS on.
NUMBER, CUT, OTHER, WHICH, OTHER_CUT, TOKENS = range(6)
ORDER, FATE, WORD = range(3)


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

    def __call__(
        self, ids: NDArray[np.int64], seen: NDArray[np.bool_], draws: Draws
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return changed sequences [batch, length], and the places and targets [batch, n] of a Batch.

        The places of a sequence are sorted. There is at least one, unless none of its tokens is eligible.

        Args:
            ids: sequences [batch, length].
            seen: False at padding [batch, length].
            draws: column TOKENS + 3 * place + ORDER, FATE or WORD is of that token.
        """
        candidates = self.eligible[ids] & seen
        most = candidates.sum(1)
        number = (self.rate * most + draws([NUMBER])[:, 0]).astype(np.int64).clip(1).clip(max=most)
        columns = TOKENS + 3 * np.arange(ids.shape[1])
        order = np.where(candidates, draws(columns + ORDER), 1).argsort(1)
        hidden = np.arange(int(number.max())) < number[:, None]
        places = np.sort(np.where(hidden, order[:, : hidden.shape[1]], ids.shape[1]), axis=1)
        places[~hidden] = 0
        fate = draws(TOKENS + 3 * places + FATE)
        word = self.ordinary[(draws(TOKENS + 3 * places + WORD) * len(self.ordinary)).astype(np.int64)]
        truth = np.take_along_axis(ids, places, 1)
        shown = np.where(fate < self.random, word, truth)
        shown[fate >= self.leave + self.random] = self.mask
        changed, rows = ids.copy(), np.nonzero(hidden)[0]
        changed[rows, places[hidden]] = shown[hidden]
        return changed, places, np.where(hidden, truth, IGNORED)


class MaskedBlocks:
    """Blocks after <s>, as whole batches. Validation draws the same masks every time.

    Args:
        blocks: of the text.
        masking: chooses the masks.
        bos, pad: the tokens <s> and <pad>.
    """

    def __init__(self, blocks: Blocks, masking: Masking, bos: int, pad: int) -> None:
        self.blocks, self.masking, self.bos, self.pad = blocks, masking, bos, pad

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Batch | PairBatch:
        """Return a sample as validation sees it, as a batch of one."""
        return self.whole_batch(np.array([index]), Draws(FIXED, np.array([index])))

    def whole_batch(self, indices: NDArray[np.int64], draws: Draws) -> Batch | PairBatch:
        """Return the samples at `indices` [batch], padded to the longest."""
        ids, lengths, *pair = self.tokens(indices, draws)
        seen = np.arange(ids.shape[1]) < lengths[:, None]
        changed, places, targets = self.masking(ids, seen, draws)
        changed[~seen] = self.pad
        attention_mask = seen[:, :0] if seen.all() else seen
        made: Any = PairBatch if pair else Batch
        return made(*map(torch.from_numpy, (changed, attention_mask, places, targets, *pair)))

    def tokens(self, indices: NDArray[np.int64], draws: Draws) -> tuple[NDArray[np.int64], ...]:
        """Return sequences [batch, length], with any tokens at padding, and their lengths [batch]."""
        tokens, lengths = self.blocks.take(indices)
        return np.insert(tokens, 0, self.bos, axis=1), lengths + 1


class MaskedPairs(MaskedBlocks):
    """Pairs <s> A </s> B </s>.

    A and B are the parts of a block cut between two of its lines, or within its only line. In half of the
    pairs B comes from another block. (BERT's own preparation also shortens a tenth of the sequences, and
    reuses lines that another block's have replaced.)
    """

    def tokens(self, indices: NDArray[np.int64], draws: Draws) -> tuple[NDArray[np.int64], ...]:
        """Return pairs [batch, length], their lengths [batch], token_type_ids and others, see PairBatch."""
        cut, other, which, other_cut = draws([CUT, OTHER, WHICH, OTHER_CUT]).T
        begin, middle, stop = self.parts(indices, cut)
        others = (other < 0.5) & (len(self) > 1)
        partners = (indices + 1 + (which * (len(self) - 1)).astype(np.int64)) % len(self)
        _, other_begin, other_stop = self.parts(partners, other_cut)
        first = middle - begin  # tokens of A
        room = self.blocks.size - 1 - first  # a block has at least one </s>
        second = np.where(others, np.minimum(other_stop - other_begin, room), stop - middle)
        first, second, lengths = first[:, None], second[:, None], first + second + 3
        place = np.arange(int(lengths.max()))
        in_second = place >= first + 2
        source = np.where(others, other_begin, middle)[:, None] - first - 2
        source = np.where(in_second, source, begin[:, None] - 1) + place
        words = (place > 0) & (place != first + 1) & (place < first + 2 + second)
        ids = np.full(words.shape, self.blocks.eos)
        ids[:, 0] = self.bos
        ids[words] = self.blocks.text.ids[source[words]]
        token_type_ids = in_second & (place < lengths[:, None])
        return ids, lengths, token_type_ids.astype(np.int64), others.astype(np.int64)

    def parts(self, indices: NDArray[np.int64], cut: NDArray[np.float64]) -> tuple[NDArray[np.int64], ...]:
        """Return where A and B of blocks begin in the text, and where B ends, [blocks] each.

        Args:
            cut: numbers in [0, 1) that say where to cut [blocks].
        """
        lines, (first, end) = self.blocks.text.lines, self.blocks.lines_of(indices)
        begin, stop = lines[first], lines[end]
        later = first + 1 + (cut * (end - first - 1)).astype(np.int64)
        within = begin + 1 + (cut * np.maximum(stop - begin - 1, 1)).astype(np.int64)
        return begin, np.where(end - first > 1, lines[later], np.minimum(within, stop)), stop
