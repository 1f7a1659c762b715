"""Lines of tokens as sequences of bounded length, without a copy of the text.

As in fairseq, every line ends with </s>, an empty line is just </s>, and `block` tells where a sequence ends:

    complete      before the line that would make it too long
    complete_doc  there, or at an empty line, which separates documents and is left out
    none          when it is full, even within a line

Positions count the tokens and ends of lines: line i begins at position lines[i] + i.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from repro.text.corpus import Tokens

CHUNK = 1 << 14  # lines that are processed together, so that they stay in the cache


class Blocks:
    """The blocks of a text, as arrays of tokens.

    Blocks of whole lines are found in one pass over the lines, and take 12 bytes each.

    Attributes:
        tokens: total number in all blocks.
        left_out: number of lines longer than a block, which no block contains, as with fairseq's
            skip_invalid_size_inputs_valid_test.

    Args:
        text: its arrays may be memory-mapped.
        block: complete, complete_doc or none.
        size: maximum number of tokens in a block, including the ends of lines.
        eos: the token </s>.
    """

    def __init__(self, text: Tokens, block: str, size: int, eos: int) -> None:
        self.text, self.size, self.eos = text, size, eos
        self.whole_lines = block != "none"
        self.left_out = 0
        if self.whole_lines:
            self.tokens = 0
            packed = list(self._pack(documents=block == "complete_doc"))
            self.first = np.concatenate([first for first, _ in packed] or [np.zeros(0, np.int64)])
            self.lengths = np.concatenate([lengths for _, lengths in packed] or [np.zeros(0, np.int32)])
        else:
            self.tokens = int(text.lines[-1]) + len(text.lines) - 1

    def __len__(self) -> int:
        return len(self.first) if self.whole_lines else -(-self.tokens // self.size)

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        """Return the tokens of a block [tokens]."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.take(np.array([index]))[0][0]

    def take(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the tokens of blocks [blocks, longest], shorter ones padded with </s>, and their lengths."""
        if self.whole_lines:
            first, end = self.lines_of(indices)
            begins, stops = self._position(first), self._position(end)
        else:
            begins = indices * self.size
            stops = np.minimum(begins + self.size, self.tokens)
            first, end = self._line_at(begins), self._line_at(stops - 1) + 1
        rows, lines = _ranges(first, end)
        places = self._position(lines + 1) - 1 - begins[rows]  # of ends of lines
        ended = np.zeros((len(indices), int((stops - begins).max())), bool)
        within = places < (stops - begins)[rows]
        ended[rows[within], places[within]] = True
        positions = begins[:, None] + np.arange(ended.shape[1])
        before = first[:, None] + ended.cumsum(1)  # ends of lines in the whole text
        tokens = np.full(ended.shape, self.eos)
        words = ~ended & (positions < stops[:, None])
        tokens[words] = self.text.ids[(positions - before)[words]]
        return tokens, stops - begins

    def lines_of(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first line of each block of whole lines, and the line after its last [blocks]."""
        first = self.first[indices]
        return first, first + self.lengths[indices]

    def _position(self, line: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the position at which each line begins."""
        return self.text.lines[line] + line

    def _line_at(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the line that contains each position, by bisection."""
        low, high = np.zeros_like(position), np.full_like(position, len(self.text.lines) - 1)
        while (high - low > 1).any():
            middle = (low + high) // 2
            reached = self._position(middle) <= position
            low, high = np.where(reached, middle, low), np.where(reached, high, middle)
        return low

    def _pack(self, documents: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield, for chunks of lines in turn, the first lines of blocks and their numbers of lines."""
        count, begin = len(self.text.lines) - 1, 0
        while begin < count:
            own = min(CHUNK, count - begin)  # lines that a block of this chunk may begin with
            reach = min(own + self.size, count - begin)  # lines it may contain, each of one position at least
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


def _ranges(first: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the whole numbers first[i]..end[i] - 1 of all i in turn, each with its i."""
    counts = end - first
    rows = np.repeat(np.arange(len(first)), counts)
    return rows, np.arange(len(rows)) + np.repeat(end - counts.cumsum(), counts)
