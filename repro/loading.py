"""Read small, possibly damaged files in bounded memory.

Every problem becomes an Unreadable: one line that names the file, but never its content.
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

# maximum bytes of a file; environment.json grows by 1 KB with each start
LARGEST = 16 << 20
LARGEST_YAML = 256 << 10  # bytes
MOST_YAML = 10_000  # events of the parser; a configuration has a few hundred
LONGEST = 1 << 20  # bytes of a line

# with the parser of libyaml, where PyYAML has it: it is ten times as fast
_FAST = (yaml.CSafeLoader,) if yaml.__with_libyaml__ else ()
_Loader: Any = type("_Loader", (*_FAST, get_yaml_loader()), {})

Kind = TypeVar("Kind", dict[str, Any], list[Any])
Line = TypeVar("Line")


class Unreadable(UserError):
    """A file that is missing or damaged."""

    def __init__(self, path: Path, reason: object, cure: str = "") -> None:
        super().__init__(f"{path}: {' '.join(str(reason).split())}" + (f"; {cure}" if cure else ""))


def read_text(path: Path, cure: str = "", largest: int = LARGEST) -> str:
    """Return the text of a UTF-8 file, with its line ends.

    Args:
        cure: advice for the error message.
        largest: maximum bytes.

    Raises:
        Unreadable: the file is missing, larger or not UTF-8, or a pipe or device, which is not waited for.
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
    """Return the object (`dict`) or list in a JSON file; see read_text.

    Raises:
        Unreadable: the file holds something else.
    """
    return parse_json(read_text(path, cure), kind, path, cure)


def parse_json(text: str, kind: type[Kind], path: Path, cure: str = "") -> Kind:
    """Return the object or list in the JSON text of a file; see read_json."""
    try:
        value = reading.parse_json(text)
    except ValueError as error:  # a number of too many digits, too
        raise Unreadable(path, f"not JSON ({error})", cure) from None
    if not isinstance(value, kind):
        raise Unreadable(path, f"not a JSON {'object' if kind is dict else 'list'}", cure)
    return value


def read_lines(path: Path, make: Callable[[Any], Line]) -> Iterator[tuple[str, Line]]:
    """Yield the lines of a file, each with the result of `make` for its JSON value.

    An incomplete last line is skipped, and a missing file has no lines.

    Args:
        make: raises ValueError, TypeError or KeyError for an invalid value.

    Raises:
        Unreadable: a line is invalid; the message has its number.
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
    """Yield the lines and records of a log; each record has an integer `step`. See read_lines."""

    def make(record: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(record["step"], int):
            raise TypeError("its step is not a whole number")
        return record

    return read_lines(path, make)


def read_yaml(path: Path, cure: str = "") -> dict[str, Any]:
    """Return the mapping in a YAML file, without resolving interpolations; see read_text.

    Raises:
        Unreadable: the file holds something else, or has aliases, with which a small file can expand to a
        huge
            value. None of our files has any.
    """
    text = read_text(path, cure, LARGEST_YAML)
    try:
        depth = 0
        for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise Unreadable(path, "has aliases (*name)", cure)
            if depth > DEEPEST or number > MOST_YAML:
                raise Unreadable(path, "too large or nested too deeply", cure)
        content = yaml.load(text, Loader=_Loader)
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
