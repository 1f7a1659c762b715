"""Where the released files are on this machine; they are no part of this project (scripts/released.py)."""

import os
from pathlib import Path

from repro.ledger import COMMIT, File, Row
from repro.released import read
from repro.released.log import Log, LogError

VARIABLE = "ADAN_RELEASED"  # environment: a folder with the files at the official repository's own paths


def folder() -> Path:
    """Return the folder of released files: what the environment names, or the cache of `released.py get`."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "adan-optim" / "released" / COMMIT[:12]


def locate(file: File) -> Path:
    """Return where a released file is.

    Raises:
        LogError: it is not there.
    """
    path = folder() / file.path
    if not path.is_file():
        raise LogError(
            f"{file.path} is not in {folder()}: get it with `python scripts/released.py get`, "
            f"or set {VARIABLE} to a folder that has it"
        )
    return path


def read_log(row: Row) -> Log:
    """Return the released log of a row, its parts merged.

    Raises:
        LogError: no log was released with it, or it is not on this machine.
    """
    if not row.logs:
        raise LogError(f"{row.name}: no log was released with this row")
    return read([locate(file) for file in row.logs])
