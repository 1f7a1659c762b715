"""Text in files, read in pieces of whole lines, so that several processes can share the work."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from repro.errors import UserError
from repro.text.encoding import refuse_wide

CHUNK = 2**20  # bytes that are read and tokenised at once
LONGEST = 64 * 2**20  # maximum bytes of a line
STRETCH = 2**16  # maximum bytes of a held-out stretch
Range = tuple[int, int]


@dataclass(frozen=True)
class FilePiece:
    """Byte ranges of a text file, each of whole lines."""

    path: Path
    ranges: tuple[Range, ...]
    strip: bool
    unit = "B"

    @property
    def name(self) -> str:
        """The name of the piece in a manifest."""
        return f"{self.path.name}:{self.ranges[0][0]}-{self.ranges[-1][1]}"

    @property
    def size(self) -> int:
        """The bytes."""
        return sum(end - begin for begin, end in self.ranges)

    def batches(self) -> Iterator[list[str]]:
        """Yield the lines, without their ends, in lists of about CHUNK bytes; blank lines are empty.

        Raises:
            UserError: a line is not UTF-8, or has more than LONGEST bytes.
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
            text = text.removeprefix("\ufeff")  # byte order mark
        return clean(text.split("\n"), self.strip)


def clean(lines: list[str], strip: bool) -> list[str]:
    """Return lines without surrounding blanks, or else without a carriage return; blank ones become empty."""
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
    """Split a file into byte ranges for training and for validation (`share` of the file).

    The file is divided into stretches of equal length, at most STRETCH and a thousandth of the file, and
    evenly spaced ones are held out. A held-out range goes from the first end of a document (or, without an
    empty line nearby, of a line) in its stretch to that in the next one.
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
    """Return the end of the line with the byte before `place`, which may be `place` itself."""
    if place <= 0:
        return 0
    file.seek(place - 1)
    file.readline()
    return file.tell()


def _document_end(file: BinaryIO, place: int, reach: int) -> int:
    """Return the end of the first empty line after `place`, or of the first line if none is in `reach`."""
    first = end = _line_end(file, place)
    while 0 < end < place + reach and (line := file.readline()):
        end += len(line)
        if line.isspace():
            return end
    return first
