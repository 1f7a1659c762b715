"""Lines of tokens as sequences of bounded length, without a copy of the text.

As in fairseq, every line ends with </s>, an empty one is </s> alone, and `block` says where a sequence ends:

    complete      before the line that would make it too long
    complete_doc  there, or at an empty line, which separates documents and is left out
    none          when it is full, be it within a line

What a line adds, its tokens and its end, is counted by positions: that of a line is lines[i] + i.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

CHUNK = 1 << 14  # lines that are looked at together: they stay in the cache


class Lines(Protocol):
    """Tokens `ids` of a text, and where its lines begin and end in them: `lines` [number of lines + 1]."""

    ids: np.ndarray
    lines: np.ndarray


class Blocks:
    """A text's blocks, as arrays of tokens.

    To find those of whole lines, the lines are gone through once; 12 bytes a block are kept.

    Attributes:
        tokens: in all blocks.
        left_out: the lines that are longer than a block. They are in none, as with fairseq's
            skip_invalid_size_inputs_valid_test.

    Args:
        text: may be memory-mapped.
        block: see above.
        size: tokens in a block at most, with those that end lines.
        eos: the token </s>.
    """

    def __init__(self, text: Lines, block: str, size: int, eos: int) -> None:
        self.text, self.size, self.eos = text, size, eos
        self.whole_lines = block != "none"
        self.left_out = 0
        if self.whole_lines:
            self.tokens = 0
            packed = list(self._pack(documents=block == "complete_doc"))
            self.first = np.concatenate([first for first, _ in packed] or [np.zeros(0, np.int64)])
            self.lengths = np.concatenate([lengths for _, lengths in packed] or [np.zeros(0, np.int32)])
        else:
            self.tokens = self._position(len(text.lines) - 1)

    def __len__(self) -> int:
        return len(self.first) if self.whole_lines else -(-self.tokens // self.size)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return the tokens of a block."""
        if self.whole_lines:
            return self._ended(*self.lines_of(index))
        begin = range(0, self.tokens, self.size)[index]
        first, last = self._line_at(begin), self._line_at(min(begin + self.size, self.tokens) - 1)
        return self._ended(first, last + 1)[begin - self._position(first) :][: self.size]

    def lines_of(self, index: int) -> tuple[int, int]:
        """Return the first line of a block of whole lines, and the one after its last."""
        first = int(self.first[index])
        return first, first + int(self.lengths[index])

    def _ended(self, first: int, end: int) -> np.ndarray:
        """Return the tokens of some lines, each followed by </s>."""
        places = self.text.lines[first : end + 1]
        return np.insert(self.text.ids[places[0] : places[-1]], places[1:] - places[0], self.eos)

    def _position(self, line: int) -> int:
        return int(self.text.lines[line]) + line

    def _line_at(self, position: int) -> int:
        """Return the line that a position is in, by halving what is in question."""
        low, high = 0, len(self.text.lines) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._position(middle) <= position else (low, middle)
        return low

    def _pack(self, documents: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the first lines of blocks and the numbers of their lines, for some lines after the other."""
        count, begin = len(self.text.lines) - 1, 0
        while begin < count:
            own = min(CHUNK, count - begin)  # lines that blocks of this part begin with
            reach = min(own + self.size, count - begin)  # and where they end: no line adds less than one
            positions = self.text.lines[begin : begin + reach + 1] + np.arange(reach + 1)
            numbers = np.arange(own)
            ends = np.searchsorted(positions, positions[:own] + self.size, side="right") - 1
            if documents:
                empty = np.append(np.flatnonzero(np.diff(positions) == 1), reach)
                ends = np.minimum(ends, empty[np.searchsorted(empty, numbers)])
            ends = np.maximum(ends, numbers + 1)
            following = ends.tolist()
            line, chain = 0, []
            while line < own:
                chain.append(line)
                line = following[line]
            first = np.array(chain)
            ends = ends[first]
            sizes = positions[ends] - positions[first]
            fits = sizes <= self.size
            self.left_out += int((~fits).sum())
            if documents:
                fits &= sizes > 1
            self.tokens += int(sizes[fits].sum())
            yield begin + first[fits], (ends - first)[fits].astype(np.int32)
            begin += line
