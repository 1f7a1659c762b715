"""Tables as plain text."""

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], right: Collection[str] = (), rule: bool = False) -> list[str]:
    """Return the lines of a table whose columns are flush left, two spaces apart.

    Args:
        rows: cells; the first row names the columns.
        right: names of columns that are flush right.
        rule: draw a line of dashes below the names.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    flush = [str.rjust if name in right else str.ljust for name in rows[0]]
    lines = [
        "  ".join(place(cell, width) for place, cell, width in zip(flush, row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]] if rule else lines
