"""Text in files that are one document each, above all source code.

Python's standard library, about 8 MB, comes with every interpreter: a text that needs no download. It is the
same for one version of Python.
"""

import os
import sysconfig
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from repro.errors import UserError
from repro.reading import read_bytes
from repro.text import python_docs
from repro.text.encoding import refuse_wide
from repro.text.files import CHUNK, LONGEST

NOT_READ = python_docs.NOT_READ | {"distutils", "encodings", "pydoc_data"}  # outdated; tables; prose
OF_THE_MACHINE = ("_sysconfigdata", "config-")  # prefixes of files that differ between installations


@dataclass(frozen=True)
class FilesPiece:
    """Files of `root` with a total of `size` bytes; with `lenient`, files that are not UTF-8 are left out."""

    root: Path
    paths: tuple[Path, ...]
    size: int
    lenient: bool = False
    unit = "B"

    @property
    def name(self) -> str:
        """The name of the piece in a manifest."""
        first, last = (self.paths[end].relative_to(self.root).as_posix() for end in (0, -1))
        return f"{first}..{last}:{len(self.paths)}"

    def batches(self) -> Iterator[list[str]]:
        """Yield the texts of the files, unchanged, in lists of about CHUNK bytes; empty files are left out.

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
        total += path.stat().st_size if path.exists() else 0  # reading it will report the problem
        if total >= size:
            found.append(FilesPiece(root, tuple(taken), total, lenient))
            taken, total = [], 0
    return [*found, *([FilesPiece(root, tuple(taken), total, lenient)] if taken else [])]


def python_files(
    root: Path, no_folders: Set[str] = frozenset(), no_prefix: tuple[str, ...] = ()
) -> list[Path]:
    """Return the .py files below a folder by name, those of each folder before those of its subfolders.

    Args:
        no_folders: names of folders to leave out.
        no_prefix: prefixes of files and folders to leave out.
    """
    paths: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in set(folders) - no_folders if not name.startswith(no_prefix))
        kept = sorted(name for name in names if name.endswith(".py") and not name.startswith(no_prefix))
        paths += [Path(folder, name) for name in kept]
    return paths


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
    return root, python_files(root, NOT_READ, OF_THE_MACHINE)
