"""A text as tokens."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from repro.errors import UserError
from repro.text import shards, sources, tokenizers
from repro.text.config import LARGE, TextConfig, TokenizerConfig
from repro.text.sources import Piece
from repro.text.tokenizers import Tokenizer


@dataclass(frozen=True)
class Tokens:
    """The tokens of a split.

    Attributes:
        ids: [tokens], uint16 or uint32; in memory or mapped from a file.
        lines: [lines + 1], int64: line i is ids[lines[i]:lines[i + 1]]. An empty line ends a document; it has
            no ids, or with `words` only <eos>. With data.unit=documents a line is a whole document, which
            ends with the tokenizer's eos if data.end_of_document is set.
    """

    ids: NDArray[Any]
    lines: NDArray[np.int64]


class Corpus:
    """The splits of a text, each made on first use.

    Attributes:
        tokenizer: the tokenizer of the text.
        splits: names of its splits: train, valid and mostly test.
    """

    def __init__(
        self, name: str, tokenizer: Tokenizer, makers: Mapping[str, Callable[[int | None], Tokens]]
    ) -> None:
        self.tokenizer, self.splits = tokenizer, list(makers)
        self._name, self._makers = name, makers
        self._made: dict[tuple[str, int | None], Tokens] = {}

    def split(self, name: str, tokens: int | None = None) -> Tokens:
        """Return a split; with `tokens`, only its first lines up to that number of tokens.

        Raises:
            UserError: the text has no such split, or the split is empty.
        """
        if name not in self._makers:
            raise UserError(f"data={self._name}: has no {name} split, only {', '.join(self.splits)}")
        if (name, tokens) not in self._made:
            self._made[name, tokens] = made = self._makers[name](tokens)
            if len(made.ids) == 0:
                raise UserError(f"data={self._name}: the {name} split has no text in it")
        return self._made[name, tokens]


def load(text: TextConfig, tokenizer: TokenizerConfig) -> Corpus:
    """Return the corpus of a configuration; shards at data.root are mapped into memory.

    Raises:
        UserError: the text or tokenizer is missing, or contradicts the configuration.
    """
    text.check()
    tokenizer.check()
    root = Path(text.root).expanduser() if text.root is not None else None
    if text.name == "shards" or (root is not None and (root / shards.MANIFEST).exists()):
        folder = sources.find_root(text, "a folder that `python scripts/prepare_text.py shards` made")
        made, manifest = shards.open_folder(folder, tokenizer)
        shards.check_unit(folder, manifest, text)
        mapped = {split: partial(_map, folder, manifest, split) for split in manifest["splits"]}
        return Corpus(text.name, made, mapped)
    if text.name in LARGE:
        raise UserError(
            f"data.root={text.root}: is no folder of shards, and this text is too large to be tokenised at "
            f"every start; `python scripts/prepare_text.py shards FOLDER data={text.name} ...` makes one"
        )
    splits = sources.find(text)
    train = splits["train"]
    made = tokenizers.build(tokenizer, lambda: (lines for piece in train for lines in piece.batches()))
    end = tokenizers.end_of_document(text, made)
    makers = {split: partial(_tokenise, split, pieces, made, end) for split, pieces in splits.items()}
    return Corpus(text.name, made, makers)


def _tokenise(
    split: str, pieces: list[Piece], tokenizer: Tokenizer, end: int | None, tokens: int | None
) -> Tokens:
    ids, counts = [np.zeros(0, tokenizer.dtype)], [np.zeros(1, np.int64)]
    made, unit = 0, pieces[0].unit if pieces else "B"
    total = sum(piece.size for piece in pieces)
    bar = tqdm(None, f"tokenising {split}", total, leave=False, disable=None, unit=unit, unit_scale=True)
    with bar, tokenizers.all_cores():
        for lines in _read(pieces, bar):
            flat, lengths = tokenizer.encode_flat(lines, end)
            ids.append(flat)
            counts.append(lengths)
            made += len(flat)
            if tokens is not None and made >= tokens:
                break
    return _first(Tokens(np.concatenate(ids), np.concatenate(counts).cumsum()), tokens)


def _read(pieces: list[Piece], bar: Any) -> Iterator[list[str]]:
    for piece in pieces:
        yield from piece.batches()
        bar.update(piece.size)


def _map(folder: Path, manifest: shards.Manifest, split: str, tokens: int | None) -> Tokens:
    return _first(Tokens(*shards.mapped(folder, manifest, split)), tokens)


def _first(text: Tokens, tokens: int | None) -> Tokens:
    """Return the first lines of a text up to `tokens` tokens, or all."""
    if tokens is None or tokens >= len(text.ids):
        return text
    last = int(np.searchsorted(text.lines, tokens))
    return Tokens(text.ids[: text.lines[last]], text.lines[: last + 1])
