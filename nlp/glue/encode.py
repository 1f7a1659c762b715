"""Encoding of sentences and pairs as tokens, and batches of these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from nlp.glue.data import Examples
from repro.errors import UserError
from repro.text.tokenizers import Tokenizer
from repro.train.seeding import hashed

Texts = Sequence[tuple[str, ...]]
Coded = tuple[list[list[int]], list[list[int]]]  # tokens of each example, and the segment of each token
Coder = Callable[[Texts], Coded]

CHUNK = 4096  # examples that are encoded at a time


class PairCoder:
    """Encodes sentences and pairs as RoBERTa and BERT were trained to read them.

    roberta: <s> a </s>, <s> a </s> </s> b </s>
    bert: [CLS] a [SEP], [CLS] a [SEP] b [SEP], where b and the end are segment 1
    """

    def __init__(self, tokenizer: Tokenizer, style: str, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        if tokenizer.bos is None or tokenizer.eos is None:
            raise UserError("tokenizer: has no tokens for the begin and end of a sentence; take another one")
        self.bos, self.eos = tokenizer.bos, tokenizer.eos
        self.between = [self.eos, self.eos] if style == "roberta" else [self.eos]
        self.segment = 0 if style == "roberta" else 1

    def __call__(self, texts: Texts) -> Coded:
        """Return tokens and token types of sentences or pairs."""
        tokens, token_type_ids = [], []
        columns = [self.tokenizer.encode(column) for column in zip(*texts, strict=True)]
        for parts in zip(*columns, strict=True):
            if len(parts) == 1:
                [a] = parts
                whole = [self.bos, *a[: self.max_length - 2], self.eos]
                first = len(whole)
            else:
                a, b = longest_first(parts[0], parts[1], self.max_length - 2 - len(self.between))
                first = 1 + len(a) + len(self.between)
                whole = [self.bos, *a, *self.between, *b, self.eos]
            tokens.append(whole)
            token_type_ids.append([0] * first + [self.segment] * (len(whole) - first))
        return tokens, token_type_ids


def longest_first(a: list[int], b: list[int], room: int) -> tuple[list[int], list[int]]:
    """Cut a pair to `room` tokens, one at a time from the longer, or from the first if equal."""
    if len(a) + len(b) <= room:
        return a, b
    shorter = min(len(a), len(b), room // 2)
    return (a[:shorter], b[: room - shorter]) if len(a) <= len(b) else (a[: room - shorter], b[:shorter])


class HuggingFaceCoder:
    """Encodes sentences and pairs by a tokenizer of transformers."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, texts: Texts) -> Coded:
        """Return tokens and token types of sentences or pairs."""
        columns = [list(column) for column in zip(*texts, strict=True)]
        coded = self.tokenizer(*columns, truncation="longest_first", max_length=self.max_length)
        token_type_ids = coded.get("token_type_ids") or [[0] * len(ids) for ids in coded["input_ids"]]
        return coded["input_ids"], token_type_ids


@dataclass
class Item:
    """An encoded example."""

    tokens: np.ndarray  # [length], int32
    token_type_ids: np.ndarray  # [length], int8
    label: float
    index: int


class Encoded(Dataset[Item]):
    """Encoded examples, in flat arrays, so that QQP and MNLI fit into memory many times over."""

    def __init__(self, examples: Sequence[Examples], coder: Coder, what: str) -> None:
        texts = [text for part in examples for text in part.texts]
        labels = [np.zeros(len(part)) if part.labels is None else part.labels for part in examples]
        self.labels = np.concatenate(labels) if labels else np.zeros(0)
        tokens, token_type_ids, lengths = [], [], []
        starts = range(0, len(texts), CHUNK)
        show = dict(desc=f"tokens of {what}", unit="chunk", leave=False, disable=len(starts) < 9)
        for start in tqdm(starts, **show):
            for ids, kinds in zip(*coder(texts[start : start + CHUNK]), strict=True):
                lengths.append(len(ids))
                tokens.append(np.array(ids, dtype=np.int32))
                token_type_ids.append(np.array(kinds, dtype=np.int8))
        self.lengths = np.array(lengths, dtype=np.int64)
        self.ends = np.cumsum(self.lengths)
        self.tokens = np.concatenate(tokens) if tokens else np.zeros(0, np.int32)
        self.token_type_ids = np.concatenate(token_type_ids) if token_type_ids else np.zeros(0, np.int8)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Item:
        end = self.ends[index]
        begin = end - self.lengths[index]
        return Item(self.tokens[begin:end], self.token_type_ids[begin:end], float(self.labels[index]), index)


class Batch(NamedTuple):
    """Examples, padded to the longest.

    tokens: [batch, length], int64.
    attention_mask: [batch, length], bool, False at padding; [batch, 0] if nothing is padded.
    token_type_ids: the segment of each token [batch, length], int64.
    labels: numbers of classes, or scores [batch], float32.
    indices: of the examples in their set [batch], int64.
    """

    tokens: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    labels: Tensor
    indices: Tensor


def collate(items: Sequence[Item], pad: int) -> Batch:
    """Return a batch, padded with the token `pad`."""
    longest = max(len(item.tokens) for item in items)
    tokens = np.full((len(items), longest), pad, dtype=np.int64)
    token_type_ids = np.zeros((len(items), longest), dtype=np.int64)
    lengths = np.array([len(item.tokens) for item in items])
    for row, item in enumerate(items):
        tokens[row, : len(item.tokens)] = item.tokens
        token_type_ids[row, : len(item.tokens)] = item.token_type_ids
    attention_mask = np.arange(longest) < lengths[:, None]
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(attention_mask[:, :0] if attention_mask.all() else attention_mask),
        torch.from_numpy(token_type_ids),
        torch.tensor([item.label for item in items], dtype=torch.float32),
        torch.tensor([item.index for item in items]),
    )


def batches(lengths: np.ndarray, batch_size: int, max_tokens: int | None, seed: int) -> list[list[int]]:
    """Cut a random order of examples into batches, which stay the same for the whole run, as in fairseq.

    A batch ends before an example that would make it larger than `batch_size`, or its padded rows longer than
    `max_tokens` in total. A single example with more tokens is a batch of its own.

    Args:
        lengths: tokens of each example [examples], int.
    """
    generator = torch.Generator().manual_seed(hashed(f"batches {seed}"))
    made: list[list[int]] = []
    longest = 0
    for index in torch.randperm(len(lengths), generator=generator).tolist():
        longest = max(longest, int(lengths[index]))
        full = not made or len(made[-1]) == batch_size
        if full or (max_tokens is not None and (len(made[-1]) + 1) * longest > max_tokens):
            made.append([])
            longest = int(lengths[index])
        made[-1].append(index)
    return made


def by_length(lengths: np.ndarray, batch_size: int) -> list[list[int]]:
    """Sort examples by their lengths [examples] and cut them into batches with little padding."""
    order = np.argsort(lengths, kind="stable").tolist()
    return [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
