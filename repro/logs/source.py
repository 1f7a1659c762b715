"""Files, sound or damaged, as numbered lines of text, and the values in them."""

import ast
import codecs
import contextlib
import gzip
import re
import warnings
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from repro.errors import UserError
from repro.reading import UNPACKED, parse_json, read_bytes


class LogError(UserError):
    """A file that is not a log, or cannot be read; the message names the file and the line."""


class Source:
    """A file or folder to be read, with its text as numbered lines.

    Compressed files (gzip) are read as far as they are sound. Byte order marks and CRLF are removed. Bytes
    that are not UTF-8 become U+FFFD, so that damage stays within a line.

    Raises:
        LogError: there is no such file, or it cannot be read.
    """

    truncated = False  # whether the compressed file ends early or is damaged
    unfinished = False  # whether the last line has no end; set by `lines`

    def __init__(self, path: Path) -> None:
        self.path = path
        self.strangers: dict[str, re.Pattern[str]] = {}  # other formats, with patterns of their records
        if not path.exists():
            raise LogError(f"{path}: no such file or folder")

    @cached_property
    def data(self) -> bytes:
        """The content of the file, decompressed as far as possible."""
        try:
            content = read_bytes(self.path)
            return self._decompressed() if content.startswith(b"\x1f\x8b") else content
        except OSError as error:
            raise LogError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def _decompressed(self) -> bytes:
        content = bytearray()
        with gzip.open(self.path) as file:
            try:
                while piece := file.read1(4096):  # small pieces, as the damaged one is lost
                    content += piece
                    if len(content) > UNPACKED:
                        raise LogError(f"{self.path}: more than {UNPACKED:,} bytes unpacked; is it a log?")
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                if not content:
                    raise LogError(f"{self.path}: broken gzip file ({error}); get it again") from error
                self.truncated = True
        return bytes(content)

    @property
    def binary(self) -> bool:
        """Whether the file is not text."""
        utf16 = self.data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return b"\0" in self.data[:8192] and not utf16

    @cached_property
    def lines(self) -> list[str]:
        """The lines of text, from number 1 at index 0.

        Raises:
            LogError: the file is empty or binary.
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
        """The first lines that are not blank, stripped, by which formats are recognised."""
        if self.path.is_dir() or self.binary:
            return []
        return [line.strip() for line in self.lines[:200] if line.strip()][:20]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects in `head`."""
        found = []
        for line in self.head:
            with contextlib.suppress(ValueError):
                found.append(json_object(line))
        return found


def json_object(line: str, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Return the JSON object in a line.

    Raises:
        ValueError: the line holds something else, or an object that lacks one of `keys`.
    """
    try:
        value = parse_json(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(value, dict) or not value.keys() >= set(keys):
        raise ValueError("not a JSON object" + (f" with {', '.join(keys)}" if keys else ""))
    return value


def numeric(value: Any) -> float:
    """Return a number of a log, given as text or JSON; `nan` and `inf` are numbers.

    Raises:
        ValueError: the value is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str) or "_" in str(value):
        raise ValueError(f"{value!r:.80} is no number")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r:.80} is no number") from None


def whole(value: Any) -> int:
    """Return a position in a run, a whole number from 0.

    Raises:
        ValueError: the value is not a position.
    """
    position = numeric(value)
    if not (0 <= position < 2**53 and position.is_integer()):
        raise ValueError(f"{value!r:.80} is no position in a run")
    return int(position)


def literal(text: str) -> Any:
    """Return the value of a Python literal, or the text itself if it is not one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning, for texts that are not Python
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
