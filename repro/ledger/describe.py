"""Describe a row of the ledger and a run of it, as text."""

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from repro import hardware
from repro.ledger.rows import COMMIT, CONFIGS, REPOSITORY, Discrepancy, Recipe, Row
from repro.logs import files
from repro.logs.log import LogError

WIDTH, INDENT = 110, 12


def describe(recipe: Recipe, command: str) -> str:
    """Return everything known about a row, and about the run that `command` would start.

    Args:
        recipe: the row, with the configuration of that run.
    """
    row = recipe.row
    paragraphs = {
        "published": [f"{row.title} ({row.table})", *_figures(row)],
        "status": [row.status],
        "scale": ["proxy: its numbers are never the paper's" if row.scale == "proxy" else row.scale],
        "command": [command if row.status == "runnable" else "none, see the status"],
        "starts from": [f"the result of {row.after}"] if row.after else [],
        "data": list(_data(recipe)),
        "needs": [f"{what}: {text}" for what, text in row.needs.items()],
        "cost": _cost(row),
        "released": list(_released(row)),
        "not known": [f"{key}: {text}" for key, text in row.unpublished.items()],
        "chosen": [f"{key}{_value(recipe, key)}: {why}" for key, why in row.chosen.items()],
        "disputed": [disputed(each) for each in row.discrepancies],
    }
    lines = [row.name, ""]
    for title, texts in paragraphs.items():
        for text in texts:
            lines += _wrapped(title, text)
            title = ""  # only before the first paragraph
    config = OmegaConf.to_yaml(OmegaConf.create(recipe.config)).rstrip()
    lines += ["", "configuration:", config if recipe.config else "none: it has no Hydra recipe"]
    return "\n".join(lines)


def published(row: Row) -> str:
    """Return the published metrics in the unit of the last one, and the number of the others.

    Rows with several units list sizes first and results last.
    """
    figures = [figure for figure in row.published if figure.value is not None]
    if not figures:
        return f"{len(row.cells)} cells" if row.cells else "no number"
    unit = figures[-1].unit
    shown = [figure for figure in figures if figure.unit == unit]
    more = len(figures) - len(shown)
    words = ", ".join(f"{figure.metric} {figure.value}" for figure in shown)
    return f"{words} {unit}" + (f" and {more} more" if more else "")


def headline(row: Row) -> str:
    """Return the first metric that `published` has, for a narrow column, and the number of all others."""
    figures = [figure for figure in row.published if figure.value is not None]
    if not figures:
        return f"{len(row.cells)} cells" if row.cells else "-"
    unit, more = figures[-1].unit, len(figures) - 1
    first = next(figure for figure in figures if figure.unit == unit)
    return f"{first.metric} {first.value}" + " %" * (unit == "%") + f", {more} more" * (more > 0)


def _figures(row: Row) -> Iterator[str]:
    for figure in row.published:
        log = f"; released log: best {figure.best}, final {figure.final}" if figure.best is not None else ""
        yield f"{figure.metric} {figure.printed}{log}"
    if row.cells:
        yield f"{len(row.cells)} cells: row.cells in configs/paper/{row.name}.yaml"


def _data(recipe: Recipe) -> Iterator[str]:
    """Yield lines on the data of a recipe and how to get it, from the data set's own configuration."""
    data = recipe.config.get("data")
    if not data:
        yield "none"
        return
    yield f"published with {recipe.row.data}; data.name={data.get('name')}"
    config = CONFIGS / "data" / f"{data.get('name')}.yaml"
    if not config.is_file():
        yield f"its reader is to come, with {recipe.row.script}"
        return
    head, root = _head(config), data.get("root")
    yield head
    if needs_root(data):
        yield "data.root is not set: add data.root=PATH"
    elif root is not None and "data.root" in head:
        there = "is there" if Path(root).expanduser().exists() else "is not there"
        yield f"data.root={root}, which {there}"


def needs_root(data: Mapping[str, Any]) -> bool:
    """Return whether a configuration's `data` needs a data.root and has none."""
    config = CONFIGS / "data" / f"{data.get('name')}.yaml"
    return data.get("root") is None and config.is_file() and "data.root" in _head(config)


def _head(config: Path) -> str:
    """Return the comments of a data set's configuration, which describe it."""
    head = [line[1:].strip() for line in config.read_text().splitlines() if line.startswith("#")]
    return " ".join(line for line in head if line != "@package _global_")


def _cost(row: Row) -> list[str]:
    if row.cost is None:
        return ["not counted"]
    proxy = ["That is of the row at the paper's scale, not of this run."] if row.scale == "proxy" else []
    return hardware.describe(row.cost) + proxy


def _released(row: Row) -> Iterator[str]:
    for file in row.files:
        try:
            place = f"here: {files.locate(file)}"
        except LogError as error:
            place = f"not here: {error}"
        records = f", {file.records:,} records" if file.records is not None else ""
        yield f"{file.kind}{records}: https://github.com/{REPOSITORY}/blob/{COMMIT}/{file.path}, {place}"
    for what, where in row.elsewhere.items():
        yield f"{what}: {where}"
    if not row.logs:
        yield "no log" if "log" not in row.elsewhere else "its log is not in the repository"


def disputed(discrepancy: Discrepancy) -> str:
    """Return what two sources say, which of them the row follows, and how to follow the other."""
    text = discrepancy.what
    if discrepancy.follow is not None:
        text += f" This row follows the {discrepancy.follow}."
    if discrepancy.because is not None:
        text += f" {discrepancy.because}"
    if discrepancy.instead:
        text += f" The other: {' '.join(discrepancy.instead)}"
    return text


def _value(recipe: Recipe, key: str) -> str:
    """Return `=value` for a key with a single value, else an empty text."""
    try:
        value = recipe.get(key)
    except (KeyError, TypeError):
        return ""
    return "" if isinstance(value, dict) else f"={value}"


def _wrapped(title: str, text: str) -> list[str]:
    if title == "command":  # to be copied
        return [title.ljust(INDENT) + text]
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=title.ljust(INDENT) if title else " " * INDENT,
        subsequent_indent=" " * (INDENT + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )
