"""Lines of tokens as sequences of bounded length, without a copy of the text.

As in fairseq, every line ends with </s>, an empty line is just </s>, and `block` tells where a sequence ends:

    complete      before the line that would make it too long
    complete_doc  there, or at an empty line, which separates documents and is left out
    none          when it is full, even within a line

Positions count the tokens and ends of lines: line i begins at position lines[i] + i.
"""

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

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
            self.tokens = self._position(len(text.lines) - 1)

    def __len__(self) -> int:
        return len(self.first) if self.whole_lines else -(-self.tokens // self.size)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return the tokens of a block [tokens]."""
        if self.whole_lines:
            return self._ended(*self.lines_of(index))
        begin = range(0, self.tokens, self.size)[index]
        first, last = self._line_at(begin), self._line_at(min(begin + self.size, self.tokens) - 1)
        return self._ended(first, last + 1)[begin - self._position(first) :][: self.size]

    def lines_of(self, index: int) -> tuple[int, int]:
        """Return the first line of a block of whole lines, and the line after its last."""
        first = int(self.first[index])
        return first, first + int(self.lengths[index])

    def _ended(self, first: int, end: int) -> np.ndarray:
        """Return the tokens of some lines, each followed by </s>."""
        places = self.text.lines[first : end + 1]
        return np.insert(self.text.ids[places[0] : places[-1]], places[1:] - places[0], self.eos)

    def _position(self, line: int) -> int:
        return int(self.text.lines[line]) + line

    def _line_at(self, position: int) -> int:
        """Return the line that contains a position."""
        return bisect_right(range(len(self.text.lines) - 1), position, key=self._position) - 1

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
