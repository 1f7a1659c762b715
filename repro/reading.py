"""Files and texts that others wrote, read and shown such that they cannot hang, exhaust or deceive us.

A pipe is refused instead of waited for; compressed, nested and aliased content is bounded; what would act on
a terminal is shown as text.
"""

import errno
import gzip
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import yaml

UNPACKED = 256 << 20  # bytes that a compressed file may have unpacked
DEEPEST = 100  # levels of JSON or YAML
YAML_NODES = 100_000  # values of a YAML document, those behind an alias counted each time


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without it, a pipe would be waited for
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
        most: bytes that it may have; default: UNPACKED.

    Raises:
        OSError: it cannot be read, is no gzip file, or has more.
        EOFError, zlib.error: it is damaged.
    """
    most = UNPACKED if most is None else most
    with open_file(path) as packed, gzip.open(packed) as file:
        content = bytearray()
        while piece := file.read(1 << 20):
            content += piece
            if len(content) > most:
                raise OSError(errno.EINVAL, f"has more than {most:,} bytes unpacked", str(path))
    return bytes(content)


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is no JSON, or is nested deeper than DEEPEST.
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
    """Return the value of a YAML text, which is plain data.

    Raises:
        ValueError: it is no YAML, is nested deeper than DEEPEST, or has more than YAML_NODES values.
    """
    node = check_yaml(text)
    try:
        return None if node is None else yaml.SafeLoader("").construct_document(node)
    except Exception as error:  # PyYAML lets many kinds through
        raise ValueError(" ".join(str(error).split())) from None


def check_yaml(text: str) -> yaml.Node | None:
    """Return the nodes of a YAML text; see `parse_yaml`, also for the errors.

    Aliases make a document of a kilobyte as large as one of gigabytes, in whatever copies or prints it.
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
    """The number of values in a node, and how deep they are nested."""
    if id(node) not in known:
        known[id(node)] = (math.inf, math.inf)  # while it is counted: it may contain itself
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [each for part in inner for each in (part if isinstance(part, tuple) else (part,))]
        extents = [_extent(part, known) for part in parts]
        known[id(node)] = (1 + sum(size for size, _ in extents), 1 + max((h for _, h in extents), default=0))
    return known[id(node)]


def printable(text: object) -> str:
    r"""Return a text for one line of a terminal: what is not printable stands as its escape, as in `\x1b`.

    That holds for control characters, line ends among them, and for those that hide or reorder others.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def printable_lines(text: str) -> str:
    """Return a text of several lines of which each is `printable`."""
    return "\n".join(map(printable, text.split("\n")))
