"""Read and show foreign files and texts such that they cannot hang, exhaust or deceive us.

Pipes are refused instead of waited for; compressed, nested and aliased content is bounded; control characters
are shown as text.
"""

import errno
import gzip
import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import yaml

UNPACKED = 256 << 20  # maximum bytes of a decompressed file
DEEPEST = 100  # maximum levels of JSON or YAML
YAML_NODES = 100_000  # maximum values of a YAML document; those behind an alias count each time


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # does not wait for a pipe
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "a pipe or a device, not a regular file", str(path))


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: see `open_file`.
    """
    with open_file(path) as file:
        return file.read()


def unpack(path: Path, most: int | None = None) -> bytes:
    """Return the content of a gzip file.

    Args:
        most: maximum bytes; default: UNPACKED.

    Raises:
        OSError: the file cannot be read, is not gzip, or is larger.
        EOFError, zlib.error: the file is damaged.
    """
    most = UNPACKED if most is None else most
    with open_file(path) as packed, gzip.open(packed) as file:
        content = bytearray()
        while piece := file.read(1 << 20):
            content += piece
            if len(content) > most:
                raise OSError(errno.EINVAL, f"has more than {most:,} bytes unpacked", str(path))
    return bytes(content)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is not JSON, or is nested deeper than DEEPEST.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(DEEPEST):
        inner = [each for part in level for each in _parts(part)]
        level = [each for each in inner if isinstance(each, dict | list)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def _parts(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text as plain data.

    Raises:
        ValueError: the text is not YAML, is nested deeper than DEEPEST, or has more than YAML_NODES values.
    """
    node = check_yaml(text)
    try:
        return None if node is None else yaml.SafeLoader("").construct_document(node)
    except Exception as error:  # PyYAML lets many kinds through
        raise ValueError(" ".join(str(error).split())) from None


def check_yaml(text: str) -> yaml.Node | None:
    """Return the nodes of a YAML text; errors are those of `parse_yaml`.

    With aliases, a kilobyte of text can grow to gigabytes when it is copied or printed.
    """
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        size, height = _extent(node, {}) if node is not None else (0, 0)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:  # PyYAML lets many kinds through
        raise ValueError(" ".join(str(error).split())) from None
    if height > DEEPEST:
        raise ValueError("nested too deeply, or contains itself")
    if size > YAML_NODES:
        raise ValueError(f"has more than {YAML_NODES:,} values, with those behind aliases")
    return node


def _extent(node: yaml.Node, known: dict[int, tuple[float, float]]) -> tuple[float, float]:
    """Return the number of values in a node and the depth of their nesting."""
    if id(node) not in known:
        known[id(node)] = (math.inf, math.inf)  # in case it contains itself
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [each for part in inner for each in (part if isinstance(part, tuple) else (part,))]
        extents = [_extent(part, known) for part in parts]
        known[id(node)] = (1 + sum(size for size, _ in extents), 1 + max((h for _, h in extents), default=0))
    return known[id(node)]


def printable(text: object) -> str:
    r"""Return a text for one line of a terminal, with unprintable characters as escapes such as `\x1b`.

    These are control characters, including line ends, and characters that hide or reorder others.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def printable_lines(text: str) -> str:
    """Apply `printable` to each line of a text."""
    return "\n".join(map(printable, text.split("\n")))
