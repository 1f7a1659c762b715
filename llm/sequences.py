"""A text as consecutive sequences of equal length.

Documents follow one another, each with an end token if data.end_of_document is set. A sequence may begin and
end anywhere in them. A token attends to all earlier ones in its sequence, even of other documents, as in
GPT-2, Megatron-LM (arXiv 1909.08053) and most later models.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from repro.errors import UserError
from repro.text.corpus import Corpus
from repro.train.seeding import Draws


class Batch(NamedTuple):
    """Sequences of tokens.

    ids: [batch, length + 1], int64; all but the last are inputs, all but the first are targets.
    """

    ids: Tensor


class Sequences(Dataset[Tensor]):
    """Sample i is ids[i * length : (i + 1) * length + 1], int64: inputs and, one ahead, their targets.

    Every token except the first is a target once. An incomplete sequence at the end is left out. A memory map
    is read only where samples need it.

    Args:
        ids: the text, [tokens] of any integer type.
        length: targets in a sequence.
        what: the text's name, for the error.

    Raises:
        UserError: the text is shorter than one sequence.
    """

    def __init__(self, ids: NDArray[Any], length: int, what: str = "text") -> None:
        self.ids, self.length = ids, length
        if len(self) < 1:
            raise UserError(
                f"data.sequence_length={length}: the {what} has {len(ids):,} tokens, a sequence needs "
                f"{length + 1:,}; take more text or shorter sequences"
            )

    def __len__(self) -> int:
        return max(0, len(self.ids) - 1) // self.length

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.whole_batch(np.array([index])).ids[0]

    def whole_batch(self, indices: NDArray[np.int64], draws: Draws | None = None) -> Batch:
        """Return the samples at `indices` [batch]."""
        places = indices[:, None] * self.length + np.arange(self.length + 1)
        return Batch(torch.from_numpy(self.ids[places].astype(np.int64)))


def sequences(text: Corpus, split: str, length: int, tokens: int | None = None) -> Sequences:
    """Return a split in sequences of `length` targets; with `tokens`, only its first so many targets.

    Raises:
        UserError: the text lacks the split, or the split is too short.
    """
    if tokens is None:
        return Sequences(text.split(split).ids, length, f"{split} text")
    ids = text.split(split, tokens + 1).ids[: tokens + 1]  # the last is a target only
    if len(ids) <= tokens:
        raise UserError(
            f"data.tokens={tokens}: the {split} text has {len(ids):,} tokens; leave it out to take all"
        )
    return Sequences(ids, length, f"{split} text")
