"""Write pages of results in Markdown, each with its data in a JSON file."""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from adan_optim.text import aligned, without_empty
from repro.errors import UserError
from repro.train.run_folder import write_atomically

NUMBER = re.compile(r"([-+<>~$]*[\d,.]+(e[-+]?\d+)?( ?[\w/%]+)?|-|)")  # with a unit, or nothing


def table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def page(title: str, *parts: str) -> str:
    """Return a page in Markdown: a heading and paragraphs, without empty ones."""
    return "\n\n".join([f"# {title}", *filter(None, parts)])


def as_text(text: str) -> str:
    """Return a page for a terminal: its tables aligned, not wider than that, and without empty columns."""
    lines: list[str] = []
    for in_table, block in groupby(text.splitlines(), lambda line: line.startswith("|")):
        found = list(block)
        lines += _as_text(found) if in_table else found
    return "\n".join(lines)


def _as_text(lines: Sequence[str]) -> list[str]:
    """Return the lines of a table in Markdown as a terminal shows them, with numbers flush right."""
    head, _, *rows = ([cell.strip() for cell in line[1:-1].split(" | ")] for line in lines)
    shown = without_empty([head, *rows])
    right = [name for name, *cells in zip(*shown, strict=True) if all(map(NUMBER.fullmatch, cells))]
    return aligned(shown, right=right, rule=True)


def bullets(lines: Iterable[str]) -> str:
    """Return a list in Markdown."""
    return "\n".join(f"* {line}" for line in lines)


def write(result: Any, text: str, out: Path, name: str | None = None) -> None:
    """Write the result to OUT.json and the page to OUT.md, or to the file `name` in the same folder.

    Raises:
        UserError: they cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out.parent}: cannot be written to ({error.strerror})") from error
    write_atomically(out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    write_atomically(out.with_suffix(".md") if name is None else out.with_name(name), text + "\n")


def publish(result: Any, text: str, out: Path | None, name: str | None = None) -> None:
    """Print a page as text; with `out`, also write it and the result, see `write`."""
    print(as_text(text))
    if out is not None:
        write(result, text, out, name)
