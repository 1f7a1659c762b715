"""Tables as plain text."""

import textwrap
from collections.abc import Collection, Sequence
from itertools import zip_longest

WIDTH = 120  # columns of a terminal


def aligned(
    rows: Sequence[Sequence[str]], right: Collection[str] = (), rule: bool = False, width: int = WIDTH
) -> list[str]:
    """Return the lines of a table whose columns are flush left, two spaces apart.

    Args:
        rows: cells; the first row names the columns.
        right: names of columns that are flush right.
        rule: draw a line of dashes below the names.
        width: of the table; if it would be wider, long cells go on in further lines, between words.
    """
    widths = _fitted(rows, width)
    flush = [str.rjust if name in right else str.ljust for name in rows[0]]

    def line(cells: Sequence[str]) -> str:
        placed = (place(cell, width) for place, cell, width in zip(flush, cells, widths, strict=True))
        return "  ".join(placed).rstrip()

    lines = [
        list(map(line, zip_longest(*map(_wrapped, row, widths), fillvalue="")))  # of each row
        for row in rows
    ]
    if rule:
        lines.insert(1, [line(["-" * width for width in widths])])
    return [line for of_row in lines for line in of_row]


def without_empty(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return a table without the columns that have nothing but "" or "-" below their name."""
    columns = [column for column in zip(*rows, strict=True) if {*column[1:]} - {"", "-"}]
    return [list(row) for row in zip(*columns, strict=True)]


def _fitted(rows: Sequence[Sequence[str]], most: int) -> list[int]:
    """Return the widths of columns that make a table of width `most`, if words can stay whole."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    least = [max((len(word) for cell in column for word in cell.split()), default=0) for column in columns]

    def wrapped(i: int) -> tuple[int, int]:  # cells of a column that is one narrower; of two, the wider one
        return sum(len(cell) >= widths[i] for cell in columns[i]), -widths[i]

    while sum(widths) + 2 * (len(widths) - 1) > most:
        shrinkable = [i for i, width in enumerate(widths) if width > least[i]]
        if not shrinkable:
            break
        widths[min(shrinkable, key=wrapped)] -= 1
    return widths


def _wrapped(cell: str, width: int) -> list[str]:
    """Return a cell in lines of at most `width`, broken between words."""
    if len(cell) <= width:
        return [cell]
    return textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False)
