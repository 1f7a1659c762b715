"""Files as numbered lines of text, whatever state they are in, and the values in them."""

import ast
import codecs
import gzip
import re
import warnings
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

from repro.errors import UserError
from repro.reading import UNPACKED, read_bytes


class LogError(UserError):
    """A file that is no log, or not one that can be read. The message names the file and the line."""


class Source:
    """A file or folder to be read, with its text as numbered lines.

    Compressed files (gzip) are opened as far as they are sound; byte order marks and CRLF are removed; bytes
    that are not UTF-8 become U+FFFD, so that a damaged line is one line's fault.

    Raises:
        LogError: there is no such file, or it cannot be read.
    """

    truncated = False  # a compressed file that ends early, or is damaged
    unfinished = False  # the last line has no end; known once `lines` is

    def __init__(self, path: Path) -> None:
        self.path = path
        self.strangers: dict[str, re.Pattern[str]] = {}  # other formats, and how their records begin
        if not path.exists():
            raise LogError(f"{path}: no such file or folder")

    @cached_property
    def data(self) -> bytes:
        """The file's content, decompressed as far as it goes."""
        try:
            content = read_bytes(self.path)
            return self._decompressed() if content.startswith(b"\x1f\x8b") else content
        except OSError as error:
            raise LogError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def _decompressed(self) -> bytes:
        content = bytearray()
        with gzip.open(self.path) as file:
            try:
                while piece := file.read1(4096):  # small, as the piece in which damage shows is lost
                    content += piece
                    if len(content) > UNPACKED:
                        raise LogError(
                            f"{self.path}: has more than {UNPACKED:,} bytes unpacked; is it a log?"
                        )
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                if not content:
                    raise LogError(f"{self.path}: broken gzip file ({error}); get it again") from error
                self.truncated = True
        return bytes(content)

    @property
    def binary(self) -> bool:
        """Whether this is no text."""
        utf16 = self.data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return b"\0" in self.data[:8192] and not utf16

    @cached_property
    def lines(self) -> list[str]:
        """The lines of text; line number n is at n - 1.

        Raises:
            LogError: the file is empty, or is no text.
        """
        if not self.data:
            raise LogError(f"{self.path}: the file is empty")
        if self.binary:
            raise LogError(f"{self.path}: a binary file, not a log that this reads")
        utf16 = self.data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = self.data.decode("utf-16" if utf16 else "utf-8-sig", errors="replace").replace("\r\n", "\n")
        self.unfinished = not text.endswith("\n")
        return text.removesuffix("\n").split("\n")

    @property
    def head(self) -> list[str]:
        """The first lines that are not blank, stripped: enough to recognise a format by."""
        if self.path.is_dir() or self.binary:
            return []
        return [line.strip() for line in self.lines[:200] if line.strip()][:20]


def numeric(value: Any) -> float:
    """Return a number that a log has, as text or as JSON; `nan` and `inf` are numbers.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str) or "_" in str(value):
        raise ValueError(f"{value!r:.80} is no number")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r:.80} is no number") from None


def whole(value: Any) -> int:
    """Return a position in a run, which is a whole number from 0 on.

    Raises:
        ValueError: it is none.
    """
    position = numeric(value)
    if not (0 <= position < 2**53 and position.is_integer()):
        raise ValueError(f"{value!r:.80} is no position in a run")
    return int(position)


def literal(text: str) -> Any:
    """Return the Python value that a text stands for; a text that is none stands for itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning: of what is no Python, anyway
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
