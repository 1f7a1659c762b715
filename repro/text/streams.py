"""A long text as parallel streams, for models that carry a state from one segment to the next.

The ids are cut into `streams` equal parts that are read in parallel, `tgt_len` tokens at a time: row `s` of
batch `n + 1` continues row `s` of batch `n`. This is the batching of Transformer-XL (Dai et al., arXiv
1901.02860) and of word-level LSTMs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from repro.errors import UserError
from repro.text import corpus
from repro.text.config import TextConfig, TokenizerConfig
from repro.text.perplexity import perplexity
from repro.train.config import TrainConfig
from repro.train.data import Plan, Sized, in_order
from repro.train.seeding import Draws
from repro.train.task import Task


class Batch(NamedTuple):
    """A segment of each stream.

    ids: [streams, tgt_len], int64; the last segment of a text is shorter.
    targets: the tokens one ahead, [streams, tgt_len], int64.
    """

    ids: Tensor
    targets: Tensor


class Streams(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of inputs and targets, both int64 [tgt_len]; targets are one token ahead.

    Item `segment * streams + stream` is that segment of that stream, so the plan for training is
    `repro.train.data.in_order(len(data), streams)`: a step takes the next segment of every stream. The last
    segment may be shorter. At most `streams - 1` tokens, which do not fill a row, are left out.

    Args:
        ids: the text, [tokens] of any integer type; a memory map is read as needed.
        streams: number of parts.
        tgt_len: tokens of a segment.
        what: name of the text, for the error.
        key: the setting of `streams`, for the error.

    Raises:
        UserError: there are fewer than two tokens per stream.
    """

    def __init__(
        self, ids: np.ndarray, streams: int, tgt_len: int, what: str = "text", key: str = "batch_size"
    ) -> None:
        self.ids, self.streams, self.tgt_len, self.key = ids, streams, tgt_len, key
        self.length = len(ids) // streams  # tokens of a stream; the last one is only a target
        self.segments = -(-(self.length - 1) // tgt_len)
        if self.length < 2:
            raise UserError(
                f"{key}={streams}: the {what} has {len(ids)} tokens, each stream needs two; "
                f"at most {key}={len(ids) // 2} are possible"
            )

    def __len__(self) -> int:
        return self.segments * self.streams

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        ids, targets = self.whole_batch(np.array([index]))
        return ids[0], targets[0]

    def whole_batch(self, indices: NDArray[np.int64], draws: Draws | None = None) -> Batch:
        """Return the items at `indices` [streams], which are of the same segment or of equally long ones."""
        segments, streams = np.divmod(indices, self.streams)
        size = min(self.tgt_len, self.length - 1 - int(segments.max()) * self.tgt_len)
        begins = streams * self.length + segments * self.tgt_len
        tokens = torch.from_numpy(self.ids[begins[:, None] + np.arange(size + 1)].astype(np.int64))
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def eval_plan(self, processes: int = 1, rank: int = 0) -> Sequence[Sequence[int]]:
        """Return the batches of one process, in order: the segments of its own streams.

        Raises:
            UserError: there are fewer streams than processes.
        """
        if self.streams < processes:
            raise UserError(
                f"{self.key}={self.streams}: must be at least the number of processes, {processes}"
            )
        own = range(self.streams * rank // processes, self.streams * (rank + 1) // processes)
        return [[segment * self.streams + stream for stream in own] for segment in range(self.segments)]


class StreamTask(Task[Batch]):
    """Next-token prediction on a text in streams, evaluated by perplexity. Losses are in nats."""

    samples = "tokens"
    products = ("tokenizer",)
    metric = "valid_perplexity"

    def __init__(self, text: TextConfig, tokenizer: TokenizerConfig, tgt_len: int, synthetic: bool) -> None:
        self.per_sample = tgt_len
        if synthetic:
            self.vocab_size = tokenizer.size
        else:
            self.corpus = corpus.load(text, tokenizer)
            self.vocab_size = self.corpus.tokenizer.vocab_size

    def plan(self, data: Sized, config: TrainConfig) -> Plan:
        """Return the plan whose steps take the next segment of every stream, equal in every epoch."""
        return in_order(len(data), config.batch_size)

    def eval_plan(self, data: Sized, batch_size: int, processes: int, rank: int) -> Sequence[Sequence[int]]:
        """Return the segments of a process's own streams, in order."""
        assert isinstance(data, Streams)
        return data.eval_plan(processes, rank)

    def synthetic_batch(self, n: int) -> Batch:
        """Return random segments of n streams."""
        return Batch(*(torch.randint(self.vocab_size, (n, self.per_sample)) for _ in range(2)))

    def num_items(self, batch: Batch) -> float:
        """Return the number of targets."""
        return float(batch.targets.numel())

    def metrics(self, sums: dict[str, Tensor], count: float) -> dict[str, float]:
        """Return the loss (nats per token) and the perplexity from the sum of losses, a scalar."""
        loss = float(sums["valid_loss"]) / count
        return {"valid_loss": loss, "valid_perplexity": perplexity(loss)}

    def begin(self, folder: Path) -> None:
        """Keep the tokenizer with the run."""
        self.corpus.tokenizer.save(folder / "tokenizer")
