"""Small files that a kill, a disk or a person may have damaged, read in bounded memory.

Whatever is wrong with one becomes an Unreadable: one line that names the file, and never its content.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import yaml
from omegaconf._utils import get_yaml_loader  # the one of OmegaConf.load: 1e-3 is a number, a date is text

from repro import reading
from repro.errors import UserError
from repro.reading import DEEPEST

# bytes of a file that is read as a whole; an environment.json grows by 1 KB with each start
LARGEST = 16 << 20
LARGEST_YAML = 256 << 10  # bytes
MOST_YAML = 10_000  # events of the parser, which is slow; a configuration has some hundreds
LONGEST = 1 << 20  # bytes of a line

Kind = TypeVar("Kind", dict[str, Any], list[Any])
Line = TypeVar("Line")


class Unreadable(UserError):
    """A file that is not there, or is not what it should be."""

    def __init__(self, path: Path, reason: object, cure: str = "") -> None:
        super().__init__(f"{path}: {' '.join(str(reason).split())}" + (f"; {cure}" if cure else ""))


def read_text(path: Path, cure: str = "", largest: int = LARGEST) -> str:
    """Return the text of a UTF-8 file as it is, line ends included.

    Args:
        cure: what to do about a file that cannot be read, for the message.
        largest: bytes; a longer file is refused before it is read.

    Raises:
        Unreadable: it is none; nothing waits for a pipe or a device.
    """
    try:
        with _open(path, cure) as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise Unreadable(path, f"larger than {largest:,} bytes", cure)
        return content.decode()
    except OSError as error:
        raise Unreadable(path, error.strerror or error, cure) from None
    except UnicodeDecodeError as error:
        raise Unreadable(path, f"not UTF-8 (byte {error.start:,})", cure) from None


def read_json(path: Path, kind: type[Kind], cure: str = "") -> Kind:
    """Return the object (`dict`) or list that a JSON file holds; see read_text.

    Raises:
        Unreadable: it holds none.
    """
    return parse_json(read_text(path, cure), kind, path, cure)


def parse_json(text: str, kind: type[Kind], path: Path, cure: str = "") -> Kind:
    """Return the object or list that the text of a file is."""
    try:
        value = reading.parse_json(text)
    except ValueError as error:  # a number of too many digits, too
        raise Unreadable(path, f"not JSON ({error})", cure) from None
    if not isinstance(value, kind):
        raise Unreadable(path, f"not a JSON {'object' if kind is dict else 'list'}", cure)
    return value


def read_lines(path: Path, make: Callable[[Any], Line]) -> Iterator[tuple[str, Line]]:
    """Give the lines of a file and what `make` makes of the JSON value of each.

    A last line that a kill left incomplete is passed over, and a file that is not there has no lines.

    Args:
        make: raises ValueError, TypeError or KeyError for a value that is no record of this file.

    Raises:
        Unreadable: a line is something else; it is named.
    """
    if not path.exists():
        return
    with _open(path) as file:
        number = 0
        while line := file.readline(LONGEST):
            number += 1
            if not line.endswith(b"\n") and len(line) < LONGEST:
                return
            try:
                text = line.decode()
                record = make(json.loads(text))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise Unreadable(
                    path, f"line {number} is not a record", "repair or delete that line"
                ) from error
            yield text, record


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the lines of a log and what each holds, an object with a whole number `step`; see read_lines."""

    def make(record: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(record["step"], int):
            raise TypeError("its step is not a whole number")
        return record

    return read_lines(path, make)


def read_yaml(path: Path, cure: str = "") -> dict[str, Any]:
    """Return the mapping that a YAML file holds, without resolving interpolations; see read_text.

    Raises:
        Unreadable: it holds none, or has aliases, with which a small file can stand for a huge one. No file
            of ours has any.
    """
    text = read_text(path, cure, LARGEST_YAML)
    try:
        depth = 0
        for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise Unreadable(path, "has aliases (*name)", cure)
            if depth > DEEPEST or number > MOST_YAML:
                raise Unreadable(path, "too large or nested too deeply", cure)
        content = yaml.load(text, Loader=get_yaml_loader())
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise Unreadable(path, f"not YAML ({error.problem}{line})", cure) from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:  # of foreign tags, too
        raise Unreadable(path, f"not YAML ({(str(error).splitlines() or [''])[0]})", cure) from None
    if not isinstance(content, dict):
        raise Unreadable(path, "not a mapping", cure)
    return {str(key): value for key, value in content.items()}


def _open(path: Path, cure: str = "") -> BinaryIO:
    try:
        return reading.open_file(path)
    except OSError as error:
        raise Unreadable(path, error.strerror or error, cure) from None
