"""Find the text of a configuration: the pieces of its splits."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from repro.errors import UserError
from repro.text import documents, files, rows
from repro.text.config import HUB, TextConfig
from repro.text.python_docs import python_docs

WHOLE = 2**62  # larger than any text: one piece per file
SPLITS = {"train": "train", "valid": "valid|validation|val|dev|held_?out", "test": "test"}
WIKITEXT = {
    "train": ["wiki.train.tokens", "train.txt"],
    "valid": ["wiki.valid.tokens", "valid.txt"],
    "test": ["wiki.test.tokens", "test.txt"],
}
BOOKS_WIKIPEDIA = (  # data set on the hub, its configuration, the unit of a row
    ("bookcorpus/bookcorpus", None, "lines"),
    ("legacy-datasets/wikipedia", "20220301.en", "documents"),
)
PTB = {split: [f"ptb.{split}.txt"] for split in SPLITS}


class Piece(Protocol):
    """A part of a split that one process reads."""

    @property
    def unit(self) -> str:
        """The unit of `size`: B, row or file."""

    @property
    def name(self) -> str:
        """A unique name, which changes with the text."""

    @property
    def size(self) -> int:
        """The size of the text, in bytes or rows."""

    def batches(self) -> Iterator[list[str]]:
        """Yield the lines or documents in lists, from the beginning at every call."""


Splits = dict[str, list[Piece]]


@dataclass(frozen=True)
class LinesPiece:
    """Lines in memory."""

    split: str
    lines: list[str]
    unit = "B"

    @property
    def name(self) -> str:
        """The split and a digest of its text."""
        return f"{self.split}:{hashlib.sha256(chr(10).join(self.lines).encode()).hexdigest()}"

    @property
    def size(self) -> int:
        """The bytes, with a line end per line."""
        return sum(len(line.encode()) + 1 for line in self.lines)

    def batches(self) -> Iterator[list[str]]:
        """Yield the lines in lists of a thousand."""
        for begin in range(0, len(self.lines), 1000):
            yield self.lines[begin : begin + 1000]


def find(config: TextConfig, size: int = WHOLE) -> Splits:
    """Return the splits of a source in pieces of about `size` bytes of text.

    Raises:
        UserError: the data is missing, or not what the source needs.
    """
    config.check()
    wikitext = partial(_named, WIKITEXT, "the unpacked word-level WikiText (wiki.train.tokens, ...)")
    ptb = partial(_named, PTB, "Mikolov's word-level Penn Treebank (of simple-examples.tgz, data/)")
    readers: dict[str, Callable[[TextConfig, int], Splits]] = {
        "python_docs": _python_docs,
        "wikitext2": wikitext,
        "wikitext103": wikitext,
        "ptb": ptb,
        "python_source": _python_source,
        "text": _text,
        **dict.fromkeys(HUB, _rows),
        "books_wikipedia": _books_wikipedia,
    }
    found = readers[config.name](config, size)
    for split, pieces in found.items():
        if not pieces:
            raise UserError(f"data={config.name}: the {split} split is empty")
    return found


def find_root(config: TextConfig, content: str) -> Path:
    """Return data.root as an existing path.

    Raises:
        UserError: there is none; the message says that it should have `content`.
    """
    if config.root is None:
        raise UserError(f"data.root is not set: data={config.name} needs {content}")
    root = Path(config.root).expanduser()
    if not root.exists():
        raise UserError(
            f"data.root={config.root}: no such file or folder; data={config.name} needs {content}"
        )
    return root


def _python_docs(config: TextConfig, size: int) -> Splits:
    return {split: [LinesPiece(split, lines)] for split, lines in python_docs().items()}


def _named(names: dict[str, list[str]], what: str, config: TextConfig, size: int) -> Splits:
    """Read one file per split, under one of its names."""
    wanted = ", ".join(" or ".join(options) for options in names.values())
    root = find_root(config, f"the folder of {what}: {wanted}")
    found: Splits = {}
    for split, options in names.items():
        path = next((root / name for name in options if (root / name).is_file()), None)
        if path is None:
            raise UserError(
                f"{root}: no {' or '.join(options)} in it; data={config.name} needs {what}: {wanted}"
            )
        found[split] = [*_pieces(path, size, config)]
    return found


def _text(config: TextConfig, size: int) -> Splits:
    """Read a file, or a folder of .txt files whose splits are train*, valid* and test*.

    Without a file for validation, stretches of every training file are held out, or with data.unit=documents
    some of the files.
    """
    root = find_root(config, "a text file, or a folder of them: train*.txt, valid*.txt, test*.txt")
    paths = sorted(path for path in root.rglob("*.txt") if path.is_file()) if root.is_dir() else [root]
    if not paths:
        raise UserError(f"{root}: no .txt files in it; data=text needs train*.txt, valid*.txt, test*.txt")
    groups: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for path in paths:
        groups[_split_of(path.name)].append(path)
    if not groups["train"]:
        raise UserError(f"{root}: no text for training in it; its name should begin with train")
    if config.unit == "documents":
        return _documents(config, size, root if root.is_dir() else root.parent, groups)
    found: Splits = {
        split: [piece for path in group for piece in _pieces(path, size, config)]
        for split, group in groups.items()
        if group
    }
    if not groups["valid"]:
        found["train"], found["valid"] = [], []
        for path in groups["train"]:
            train, valid = files.hold_out(path, config.valid_share)
            found["train"] += _pieces(path, size, config, train)
            found["valid"] += _pieces(path, size, config, valid)
        if not found["valid"]:
            raise _nothing_held_out(config, root)
    return found


def _python_source(config: TextConfig, size: int) -> Splits:
    """Read the .py files of a folder; without data.root those of Python's own library."""
    if config.root is None:
        root, paths = documents.library()
    else:
        root = find_root(config, "a folder with Python files")
        paths = documents.python_files(root)
        if not paths:
            raise UserError(f"{root}: no .py files in it; data={config.name} needs a folder with some")
    return _documents(config, size, root, {"train": paths}, lenient=True)


def _documents(
    config: TextConfig, size: int, root: Path, groups: dict[str, list[Path]], lenient: bool = False
) -> Splits:
    """Read files as documents; without files for validation, a hash of their names holds some out."""
    if not groups.get("valid"):
        chosen: dict[bool, list[Path]] = {False: [], True: []}
        for path in groups["train"]:
            chosen[rows.held_out(path.relative_to(root).as_posix(), config.valid_share)].append(path)
        if not all(chosen.values()):
            raise _nothing_held_out(config, root)
        groups = groups | {"train": chosen[False], "valid": chosen[True]}
    wanted = {split: groups[split] for split in SPLITS if groups.get(split)}
    return {split: [*documents.pieces(root, paths, size, lenient)] for split, paths in wanted.items()}


def _nothing_held_out(config: TextConfig, root: Path) -> UserError:
    return UserError(
        f"data.valid_share={config.valid_share}: leaves nothing of {root} for validation; raise it"
    )


def _rows(config: TextConfig, size: int) -> Splits:
    return {split: [*found] for split, found in rows.pieces(config, size).items()}


def _books_wikipedia(config: TextConfig, size: int) -> Splits:
    """Read text files of a local folder as data=text does; without data.root the data sets on the hub."""
    if config.root is not None:
        return _text(config, size)
    found: Splits = {"train": [], "valid": []}
    for root, name, kind in BOOKS_WIKIPEDIA:
        one = replace(config, root=root, dataset_config=name, rows=kind, test_split="", valid_split="")
        for split, pieces in _rows(one, size).items():
            found[split] += pieces
    return found


def _split_of(name: str) -> str:
    for split, pattern in SPLITS.items():
        if re.match(rf"(?:.*[._-])?(?:{pattern})(?:[._-].*|\d*\..*)?$", name, re.IGNORECASE):
            return split
    return "train"


def _pieces(
    path: Path, size: int, config: TextConfig, ranges: list[files.Range] | None = None
) -> list[Piece]:
    if path.stat().st_size == 0:
        raise UserError(f"{path}: empty file; get it again")
    return [*files.pieces(path, size, config.strip, ranges)]
