"""Python's own documentation: a text that comes with every interpreter and needs no download.

It consists of the topics of the reference (pydoc_data.topics, shown by `help()`) and the docstrings of the
standard library, read from the source without importing it. A document is a topic, or all docstrings of a
module; a line is one of its paragraphs. The text, about 2 MB, is the same for one version of Python.
"""

import ast
import contextlib
import functools
import hashlib
import inspect
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from repro.errors import UserError
from repro.publish import store, stored

SHARES = {"valid": 5, "test": 5}  # percent of the documents
NOT_READ = {"test", "tests", "idle_test", "idlelib", "lib2to3", "__pycache__"}
NOT_READ |= {"site-packages", "dist-packages"}
RULE = re.compile(r"\s*([*=~^#+-])\1{2,}\s*")  # a line that underlines a heading
Splits = dict[str, list[str]]
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def python_docs() -> Splits:
    """Return the result of read_library, cached in the user's cache folder ($XDG_CACHE_HOME).

    Parsing the whole library takes some seconds.
    """
    about = f"{sys.version} {_library()} {Path(__file__).read_text()}"  # the text depends on these
    caches = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "adan-text"
    cache = caches / f"python_docs-{hashlib.sha256(about.encode()).hexdigest()[:16]}.cache"
    content = stored(cache)
    if content is not None:
        return dict(json.loads(content))
    splits = read_library()
    with contextlib.suppress(OSError):
        store(cache, json.dumps(splits).encode())
    return splits


def read_library() -> Splits:
    """Return the lines of the splits train, valid and test, with an empty line after every document.

    The split of a document depends on its name alone. No docstring is repeated.

    Raises:
        UserError: this interpreter came without the source of its library.
    """
    splits: Splits = {"train": [], "valid": [], "test": []}
    for name, lines in documents():
        splits[split_of(name)] += [*lines, ""]
    return splits


def split_of(name: str) -> str:
    """Return the split of the document of this name."""
    number = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100
    for split, share in SHARES.items():
        if number < share:
            return split
        number -= share
    return "train"


def documents() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and lines of every document, ordered by topics, folders and files."""
    library = _library()
    topics = library / "pydoc_data" / "topics.py"
    if not topics.exists():
        raise UserError(
            f"{library}: this Python has no source of its library (no {topics.relative_to(library)}), which "
            "data=python_docs reads; take another text, for example data=text data.root=PATH"
        )
    for topic, text in sorted(_topics(topics).items()):
        yield f"topic {topic}", paragraphs(text)
    seen: set[str] = set()
    for folder, folders, names in os.walk(library):
        folders[:] = sorted(set(folders) - NOT_READ)
        for path in sorted(Path(folder, name) for name in names if name.endswith(".py")):
            lines = [line for text in _docstrings(path, seen) for line in paragraphs(text)]
            if lines and path != topics:
                yield path.relative_to(library).as_posix(), lines


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text, each as one line with single blanks, without underlines."""
    lines = ["" if RULE.fullmatch(line) else line for line in text.splitlines()]
    blocks = re.split(r"\n\s*\n", "\n".join(lines))
    return [" ".join(block.split()) for block in blocks if block.strip()]


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _topics(path: Path) -> dict[str, str]:
    """Read the one assignment of pydoc_data/topics.py."""
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.Assign):
            return dict(ast.literal_eval(statement.value))
    raise UserError(f"{path}: holds no topics; take another text than data=python_docs")


def _docstrings(path: Path, seen: set[str]) -> Iterator[str]:
    """Yield the docstrings of a module that are not in `seen`, in the order of the source."""
    waiting: list[ast.stmt | ast.Module] = [ast.parse(path.read_bytes())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Documented):
            text = ast.get_docstring(node, clean=False)
            if text is not None and text not in seen:
                seen.add(text)
                yield inspect.cleandoc(text)
        inner = [part for name in ("body", "orelse") for part in getattr(node, name, [])]
        waiting += [part for part in reversed(inner) if isinstance(part, ast.stmt)]
