"""A text as tokens: what models are trained on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nlp.config.text import TextConfig, TokenizerConfig
from nlp.text import sources, tokenizers
from nlp.text.tokenizers import Tokenizer
from repro.errors import UserError


@dataclass(frozen=True)
class Tokens:
    """The tokens of a split.

    Attributes:
        ids: 1-D, uint16 or uint32; in memory, or mapped from a file.
        lines: int64, one more than there are lines: line i is ids[lines[i]:lines[i + 1]]. An empty line ends a
            document; it has no ids, with `words` only <eos>.
    """

    ids: NDArray[Any]
    lines: NDArray[np.int64]


class Corpus:
    """The splits of a text, tokenised when they are first asked for."""

    def __init__(self, text: TextConfig, tokenizer: TokenizerConfig) -> None:
        self._pieces = sources.find(text)
        train = self._pieces["train"]
        self._name = text.name
        self.tokenizer: Tokenizer = tokenizers.build(
            tokenizer, lambda: (lines for piece in train for lines in piece.batches())
        )
        self._splits: dict[str, Tokens] = {}

    @property
    def splits(self) -> list[str]:
        """Names of the splits that there are: train, valid and mostly test."""
        return list(self._pieces)

    def split(self, name: str) -> Tokens:
        """Return a split.

        Raises:
            UserError: the text has no such split, or nothing in it.
        """
        if name not in self._pieces:
            raise UserError(f"data={self._name}: has no {name} split, only {', '.join(self.splits)}")
        if name not in self._splits:
            self._splits[name] = self._tokenise(name)
        return self._splits[name]

    def _tokenise(self, name: str) -> Tokens:
        pieces = self._pieces[name]
        ids, counts = [], []
        total = sum(piece.size for piece in pieces)
        with (
            tqdm(
                total=total, unit="B", unit_scale=True, desc=f"tokenising {name}", leave=False, disable=None
            ) as bar,
            tokenizers.all_cores(),
        ):
            for piece in pieces:
                for lines in piece.batches():
                    flat, lengths = self.tokenizer.encode_flat(lines)
                    ids.append(flat)
                    counts.append(lengths)
                    bar.update(sum(map(len, lines)) + len(lines))
        if not sum(map(len, ids)):
            raise UserError(f"data={self._name}: the {name} split has no text in it")
        return Tokens(np.concatenate(ids), np.concatenate([[0], *counts]).cumsum())


def load(text: TextConfig, tokenizer: TokenizerConfig) -> Corpus:
    """Return the corpus of a configuration.

    Raises:
        UserError: text or tokenizer are not there, or not what the configuration says.
    """
    return Corpus(text, tokenizer)
