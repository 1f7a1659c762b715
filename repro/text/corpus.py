"""A text as tokens: what models are trained on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm  # type: ignore[import-untyped]

from repro.errors import UserError
from repro.text import shards, sources, tokenizers
from repro.text.config import TextConfig, TokenizerConfig
from repro.text.sources import Piece
from repro.text.tokenizers import Tokenizer


@dataclass(frozen=True)
class Tokens:
    """The tokens of a split.

    Attributes:
        ids: 1-D, uint16 or uint32; in memory, or mapped from a file.
        lines: int64, one more than there are lines: line i is ids[lines[i]:lines[i + 1]]. An empty line
            ends a document; it has no ids, with `words` only <eos>.
    """

    ids: NDArray[Any]
    lines: NDArray[np.int64]


class Corpus:
    """The splits of a text; each is made when it is first asked for.

    Attributes:
        tokenizer: what made the tokens.
        splits: names of the splits that there are: train, valid and mostly test.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, makers: dict[str, Callable[[], Tokens]]) -> None:
        self.tokenizer, self.splits = tokenizer, list(makers)
        self._name, self._makers = name, makers
        self._made: dict[str, Tokens] = {}

    def split(self, name: str) -> Tokens:
        """Return a split.

        Raises:
            UserError: the text has no such split, or nothing in it.
        """
        if name not in self._makers:
            raise UserError(f"data={self._name}: has no {name} split, only {', '.join(self.splits)}")
        if name not in self._made:
            self._made[name] = self._makers[name]()
            if len(self._made[name].ids) == 0:
                raise UserError(f"data={self._name}: the {name} split has no text in it")
        return self._made[name]


def load(text: TextConfig, tokenizer: TokenizerConfig) -> Corpus:
    """Return the corpus of a configuration; a data.root of shards is mapped, not read.

    Raises:
        UserError: text or tokenizer are not there, or not what the configuration says.
    """
    text.check()
    tokenizer.check()
    root = Path(text.root).expanduser() if text.root is not None else None
    if text.name == "shards" or (root is not None and (root / shards.MANIFEST).exists()):
        folder = sources.find_root(text, "a folder that `python scripts/prepare_text.py shards` made")
        made, manifest = shards.open_folder(folder, tokenizer)
        return Corpus(
            text.name, made, {split: partial(_map, folder, manifest, split) for split in manifest["splits"]}
        )
    if text.name == "books_wikipedia":
        raise UserError(
            f"data.root={text.root}: is no folder of shards, and this text is too large to be tokenised at "
            "every start; `python scripts/prepare_text.py shards FOLDER data=books_wikipedia ...` makes one"
        )
    splits = sources.find(text)
    train = splits["train"]
    made = tokenizers.build(tokenizer, lambda: (lines for piece in train for lines in piece.batches()))
    return Corpus(
        text.name, made, {split: partial(_tokenise, split, splits[split], made) for split in splits}
    )


def _tokenise(split: str, pieces: list[Piece], tokenizer: Tokenizer) -> Tokens:
    ids, counts = [np.zeros(0, tokenizer.dtype)], [np.zeros(1, np.int64)]
    unit = pieces[0].unit if pieces else "B"
    total = sum(piece.size for piece in pieces)
    with (
        tqdm(
            total=total, unit=unit, unit_scale=True, desc=f"tokenising {split}", leave=False, disable=None
        ) as bar,
        tokenizers.all_cores(),
    ):
        for piece in pieces:
            for lines in piece.batches():
                flat, lengths = tokenizer.encode_flat(lines)
                ids.append(flat)
                counts.append(lengths)
            bar.update(piece.size)
    return Tokens(np.concatenate(ids), np.concatenate(counts).cumsum())


def _map(folder: Path, manifest: shards.Manifest, split: str) -> Tokens:
    return Tokens(*shards.mapped(folder, manifest, split))
