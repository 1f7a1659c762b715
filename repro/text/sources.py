"""Where text comes from: a configuration to the pieces of its splits."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from repro.errors import UserError
from repro.text import documents, files, rows
from repro.text.config import HUB, TextConfig
from repro.text.python_docs import python_docs

WHOLE = 2**62  # a size that no text has: one piece a file
SPLITS = {"train": "train", "valid": "valid|validation|val|dev|held_?out", "test": "test"}
WIKITEXT = {
    "train": ["wiki.train.tokens", "train.txt"],
    "valid": ["wiki.valid.tokens", "valid.txt"],
    "test": ["wiki.test.tokens", "test.txt"],
}
BOOKS_WIKIPEDIA = (  # data set on the hub, its configuration, what a row is
    ("bookcorpus/bookcorpus", None, "lines"),
    ("legacy-datasets/wikipedia", "20220301.en", "documents"),
)
PTB = {split: [f"ptb.{split}.txt"] for split in SPLITS}


class Piece(Protocol):
    """A part of a split that one process reads."""

    @property
    def unit(self) -> str:
        """Of size: B, row or file."""

    @property
    def name(self) -> str:
        """What tells it from others, and from itself after the text has changed."""

    @property
    def size(self) -> int:
        """Of the text, in bytes or rows."""

    def batches(self) -> Iterator[list[str]]:
        """Give the lines, or documents, in lists, from the beginning at every call."""


Splits = dict[str, list[Piece]]


@dataclass(frozen=True)
class LinesPiece:
    """Lines that are in memory."""

    split: str
    lines: list[str]
    unit = "B"

    @property
    def name(self) -> str:
        """The split and a digest of its text."""
        return f"{self.split}:{hashlib.sha256(chr(10).join(self.lines).encode()).hexdigest()}"

    @property
    def size(self) -> int:
        """In bytes, with a line end each."""
        return sum(len(line.encode()) + 1 for line in self.lines)

    def batches(self) -> Iterator[list[str]]:
        """Give the lines in lists of a thousand."""
        for begin in range(0, len(self.lines), 1000):
            yield self.lines[begin : begin + 1000]


def find(config: TextConfig, size: int = WHOLE) -> Splits:
    """Return the pieces, of about `size` bytes of text each, of the splits that the source has.

    Raises:
        UserError: the data is not there, or not what the source needs.
    """
    config.check()
    readers: dict[str, Callable[[TextConfig, int], Splits]] = {
        "python_docs": _python_docs,
        "wikitext2": _wikitext,
        "wikitext103": _wikitext,
        "ptb": _ptb,
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
    """Return data.root as a path that exists, or raise UserError, which says what `content` is wanted."""
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


def _wikitext(config: TextConfig, size: int) -> Splits:
    return _named(config, size, WIKITEXT, "the unpacked word-level WikiText (wiki.train.tokens, ...)")


def _ptb(config: TextConfig, size: int) -> Splits:
    return _named(config, size, PTB, "Mikolov's word-level Penn Treebank (of simple-examples.tgz, data/)")


def _named(config: TextConfig, size: int, names: dict[str, list[str]], what: str) -> Splits:
    """Read one file a split, by one of its names."""
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
    """A file, or a folder of .txt files: train*, valid* and test* are its splits.

    Where none is for validation, stretches of every training file are held out; or some of the files, where
    each is a document.
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
            for split, ranges in zip(
                ("train", "valid"), files.hold_out(path, config.valid_share), strict=True
            ):
                found[split] += _pieces(path, size, config, ranges)
        if not found["valid"]:
            raise _nothing_held_out(config, root)
    return found


def _python_source(config: TextConfig, size: int) -> Splits:
    """The .py files of a folder; without data.root those of Python's own library."""
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
    """Files as documents; where none is for validation, those that their names below `root` choose."""
    if not groups.get("valid"):
        chosen = [
            rows.held_out(path.relative_to(root).as_posix(), config.valid_share) for path in groups["train"]
        ]
        if all(chosen) or not any(chosen):
            raise _nothing_held_out(config, root)
        both = list(zip(groups["train"], chosen, strict=True))
        groups = groups | {
            "train": [path for path, held_out in both if not held_out],
            "valid": [path for path, held_out in both if held_out],
        }
    return {
        split: [*documents.pieces(root, groups[split], size, lenient)]
        for split in SPLITS
        if groups.get(split)
    }


def _nothing_held_out(config: TextConfig, root: Path) -> UserError:
    return UserError(
        f"data.valid_share={config.valid_share}: leaves nothing of {root} for validation; raise it"
    )


def _rows(config: TextConfig, size: int) -> Splits:
    return {split: [*found] for split, found in rows.pieces(config, size).items()}


def _books_wikipedia(config: TextConfig, size: int) -> Splits:
    """Text files in a local folder, as data=text reads them; without data.root what the hub has."""
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
