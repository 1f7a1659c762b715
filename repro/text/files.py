"""Text in files, read in pieces of whole lines that several processes can take."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from repro.errors import UserError
from repro.text.encoding import refuse_wide

CHUNK = 2**20  # bytes that are read and tokenised at once
LONGEST = 64 * 2**20  # bytes of a line
STRETCH = 2**16  # bytes, of a held-out stretch at most
Range = tuple[int, int]


@dataclass(frozen=True)
class FilePiece:
    """Ranges of bytes of a text file, each of which begins and ends with whole lines."""

    path: Path
    ranges: tuple[Range, ...]
    strip: bool
    unit = "B"

    @property
    def name(self) -> str:
        """What the piece is called in a manifest."""
        return f"{self.path.name}:{self.ranges[0][0]}-{self.ranges[-1][1]}"

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(end - begin for begin, end in self.ranges)

    def batches(self) -> Iterator[list[str]]:
        """Give the lines, without their ends, in lists of about CHUNK bytes; a line of blanks is empty.

        Raises:
            UserError: the file is not UTF-8, which names the line, or has a line of more than LONGEST bytes.
        """
        with self.path.open("rb") as file:
            for begin, end in self.ranges:
                yield from self._range(file, begin, end)

    def _range(self, file: BinaryIO, position: int, end: int) -> Iterator[list[str]]:
        file.seek(position)
        rest = b""
        while position < end:
            chunk = file.read(min(CHUNK, end - position))
            if not chunk:
                raise UserError(f"{self.path}: became shorter while it was read")
            position += len(chunk)
            whole, newline, after = (rest + chunk).rpartition(b"\n")
            if newline:
                yield self._lines(whole, position - len(after) - 1 - len(whole))
            rest = after
            if len(rest) > LONGEST:
                raise UserError(
                    f"{self.path}: a line of more than {LONGEST // 2**20} MiB, from byte "
                    f"{position - len(rest)} on; text is read by lines: break it"
                )
        if rest:
            yield self._lines(rest, end - len(rest))

    def _lines(self, block: bytes, offset: int) -> list[str]:
        if offset == 0:
            refuse_wide(self.path, block)
        try:
            text = block.decode()
        except UnicodeDecodeError as error:
            place = offset + error.start
            with self.path.open("rb") as file:
                line = 1 + sum(
                    file.read(min(CHUNK, place - begin)).count(b"\n") for begin in range(0, place, CHUNK)
                )
            raise UserError(
                f"{self.path}: line {line} is not UTF-8 (byte {block[error.start]:#04x} at offset {place}); "
                "convert the file, as with iconv -f latin1 -t UTF-8"
            ) from error
        if offset == 0:
            text = text.removeprefix("\ufeff")  # the mark of some editors
        return clean(text.split("\n"), self.strip)


def clean(lines: list[str], strip: bool) -> list[str]:
    """Return lines without blanks at their ends, or without a carriage return; blank ones become empty."""
    if strip:
        return [line.strip() for line in lines]
    return [line.removesuffix("\r") if line and not line.isspace() else "" for line in lines]


def pieces(path: Path, size: int, strip: bool, ranges: list[Range] | None = None) -> list[FilePiece]:
    """Cut a file, or ranges of it, into pieces of about `size` bytes, each ending where a line does."""
    found: list[FilePiece] = []
    taken: list[Range] = []
    room = size
    with path.open("rb") as file:
        for begin, end in ranges if ranges is not None else [(0, path.stat().st_size)]:
            while begin < end:
                cut = min(end, _line_end(file, begin + room)) if end - begin > room else end
                taken.append((begin, cut))
                room -= cut - begin
                begin = cut
                if room <= 0:
                    found.append(FilePiece(path, tuple(taken), strip))
                    taken, room = [], size
    return [*found, *([FilePiece(path, tuple(taken), strip)] if taken else [])]


def hold_out(path: Path, share: float) -> tuple[list[Range], list[Range]]:
    """Split a file's bytes into ranges of lines for training and others, `share` of it, for validation.

    The file is seen as stretches of equal length, at most STRETCH and at most a thousandth of it; evenly
    spaced ones are held out, from the first end of a document (or, where no empty line is near, of a line)
    in them to the first in the next one.
    """
    total = path.stat().st_size
    stretch = max(1, min(STRETCH, total // 1000))
    train, valid = [], []
    begin = 0
    with path.open("rb") as file:
        for index in range(total // stretch):
            if math.floor((index + 1) * share) == math.floor(index * share):
                continue
            first = max(begin, _document_end(file, index * stretch, stretch))
            last = max(first, _document_end(file, (index + 1) * stretch, stretch))
            train += [(begin, first)] if first > begin else []
            valid += [(first, last)] if last > first else []
            begin = last
    train += [(begin, total)] if total > begin else []
    return train, valid


def _line_end(file: BinaryIO, place: int) -> int:
    """Return where the line that has the byte before `place` ends; a place after a line's end stays."""
    if place <= 0:
        return 0
    file.seek(place - 1)
    file.readline()
    return file.tell()


def _document_end(file: BinaryIO, place: int, reach: int) -> int:
    """Return where the first empty line after `place` ends, or the first line if none is within `reach`."""
    first = end = _line_end(file, place)
    while 0 < end < place + reach and (line := file.readline()):
        end += len(line)
        if line.isspace():
            return end
    return first
