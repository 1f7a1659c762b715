"""GLUE's tables: lines of cells separated by tabs, without quotes or escapes.

Errors name FILE:LINE. A byte order mark, CR LF line ends, empty lines at the end, and an unexpected header
are accepted silently.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from repro.errors import UserError
from repro.reading import read_bytes
from repro.text.encoding import refuse_wide

SHOWN = 60  # characters of a line in an error


@dataclass(frozen=True)
class Table:
    """The rows of a file, each with a cell for each column."""

    path: Path
    columns: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]  # line number of each row in the file, from 1
    skipped: list[int]  # numbers of lines with the wrong number of cells

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list[str]:
        """Return the cells of a column."""
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def error(self, row: int, message: str) -> UserError:
        """Return an error that names the line of a row."""
        return UserError(f"{self.path}:{self.lines[row]}: {message}")


def read(
    path: Path, needed: Sequence[str], columns: Sequence[str] = (), skip_bad_lines: bool = False
) -> Table:
    """Read a file that names its columns in the first line, or else has `columns`.

    Args:
        needed: required columns.

    Raises:
        UserError: it cannot be read, lacks a column, or has no rows, or a row with the wrong number of cells.
    """
    lines = [line.removesuffix("\r").split("\t") for line in _text(path).split("\n")]
    while lines and lines[-1] == [""]:
        lines.pop()
    if not lines:
        raise UserError(f"{path}: is empty; get the file again")
    names, begin = _names(path, lines[0], needed, columns)
    kept: list[int] = []
    bad: list[int] = []
    for number in range(begin, len(lines)):
        (kept if len(lines[number]) == len(names) else bad).append(number)
    if bad and not skip_bad_lines:
        raise UserError(_bad_line(path, bad[0] + 1, lines[bad[0]], names))
    if not kept:
        raise UserError(f"{path}: has no examples, only a line of names; get the file again")
    return Table(path, names, [lines[n] for n in kept], [n + 1 for n in kept], [number + 1 for number in bad])


def _text(path: Path) -> str:
    try:
        content = read_bytes(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    refuse_wide(path, content)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        line = content.count(b"\n", 0, error.start) + 1
        cure = "convert the file, for example by iconv -f latin1 -t UTF-8"
        raise UserError(f"{path}:{line}: byte 0x{byte:02x} is not UTF-8; {cure}") from error


def _names(
    path: Path, first: list[str], needed: Sequence[str], columns: Sequence[str]
) -> tuple[tuple[str, ...], int]:
    """Return the names of the columns and the index of the first row."""
    missing = [name for name in needed if name not in first]
    if not missing:
        for name in needed:
            if first.count(name) > 1:
                raise UserError(f"{path}:1: has two columns {name!r}; name one of them differently")
        return tuple(first), 1
    if len(columns) == len(first):
        return tuple(columns), 0
    shown = _shown("\t".join(first))
    if columns:
        raise UserError(
            f"{path}:1: has {len(first)} columns, not the {len(columns)} of {', '.join(columns)}, nor is it "
            f"a line of names with {', '.join(needed)}: {shown}"
        )
    raise UserError(
        f"{path}:1: has no column {missing[0]!r}; the first line has to name the columns, "
        f"{', '.join(needed)} among them, and is {shown}"
    )


def _bad_line(path: Path, number: int, cells: list[str], names: Sequence[str]) -> str:
    count = f"{len(cells)} column{'s'[: len(cells) > 1]}"
    what = "is empty" if cells == [""] else f"has {count}, not {len(names)}: {_shown(chr(9).join(cells))}"
    return (
        f"{path}:{number}: {what}; correct the line, one tab between columns and none in them, "
        "or leave such lines out with data.bad_lines=skip"
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
