"""Text in whole files, each of which is a document: source code above all, also Python's own.

The code that comes with every interpreter is its standard library, about 8 MB: the text to learn from when
nothing can be fetched. It is the same for one version of Python.
"""

import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from repro.errors import UserError
from repro.reading import read_bytes
from repro.text import python_docs
from repro.text.encoding import refuse_wide
from repro.text.files import CHUNK, LONGEST

NOT_READ = python_docs.NOT_READ | {"distutils", "encodings", "pydoc_data"}  # old; tables; prose
OF_THE_MACHINE = ("_sysconfigdata", "config-")  # how names begin of what differs between installations


@dataclass(frozen=True)
class FilesPiece:
    """Files of `root`, `size` bytes in all. With `lenient` those that are not UTF-8 are left out."""

    root: Path
    paths: tuple[Path, ...]
    size: int
    lenient: bool = False
    unit = "B"

    @property
    def name(self) -> str:
        """What the piece is called in a manifest."""
        first, last = (self.paths[end].relative_to(self.root).as_posix() for end in (0, -1))
        return f"{first}..{last}:{len(self.paths)}"

    def batches(self) -> Iterator[list[str]]:
        """Give the files' texts, to the last byte as they are, in lists of about CHUNK bytes; no empty ones.

        Raises:
            UserError: a file is not UTF-8 or has more than LONGEST bytes.
        """
        documents: list[str] = []
        size = 0
        for path in self.paths:
            try:
                content = read_bytes(path)
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror})") from error
            if len(content) > LONGEST:
                raise UserError(f"{path}: more than {LONGEST // 2**20} MiB in one document; break it")
            if not self.lenient:
                refuse_wide(path, content)
            try:
                documents += [content.decode()] if content else []
            except UnicodeDecodeError as error:
                if not self.lenient:
                    raise UserError(
                        f"{path}: is not UTF-8 (byte {content[error.start]:#04x} at offset {error.start}); "
                        "convert the file, as with iconv -f latin1 -t UTF-8"
                    ) from error
            size += len(content)
            if size >= CHUNK:
                yield documents
                documents, size = [], 0
        if documents:
            yield documents


def pieces(root: Path, paths: Sequence[Path], size: int, lenient: bool = False) -> list[FilesPiece]:
    """Return the files in pieces of about `size` bytes."""
    found: list[FilesPiece] = []
    taken: list[Path] = []
    total = 0
    for path in paths:
        taken.append(path)
        total += path.stat().st_size if path.exists() else 0  # reading it says what is wrong
        if total >= size:
            found.append(FilesPiece(root, tuple(taken), total, lenient))
            taken, total = [], 0
    return [*found, *([FilesPiece(root, tuple(taken), total, lenient)] if taken else [])]


def python_files(root: Path) -> list[Path]:
    """Return every .py file below a folder, of each folder its own before those of its folders, by name."""
    return _python_files(root, set(), ())


def library() -> tuple[Path, list[Path]]:
    """Return the folder of Python's standard library and its files, without NOT_READ and OF_THE_MACHINE.

    Raises:
        UserError: this interpreter came without the source of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / "os.py").exists():
        raise UserError(
            f"{root}: this Python has no source of its library (no os.py), which data=python_source reads; "
            "give it a folder with Python files, data.root=PATH"
        )
    return root, _python_files(root, NOT_READ, OF_THE_MACHINE)


def _python_files(root: Path, folders_left_out: set[str], left_out: tuple[str, ...]) -> list[Path]:
    paths: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in set(folders) - folders_left_out if not name.startswith(left_out))
        paths += [
            Path(folder, name)
            for name in sorted(names)
            if name.endswith(".py") and not name.startswith(left_out)
        ]
    return paths
