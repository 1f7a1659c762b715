"""Where the released files are on this machine, and how to get them; they are no part of this project."""

import hashlib
import os
import ssl
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import cast
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import urlopen

from tqdm import tqdm

from repro.errors import UserError
from repro.ledger.rows import COMMIT, REPOSITORY, File, Row, load, names
from repro.logs import read
from repro.logs.log import Log, LogError
from repro.publish import replacing

VARIABLE = "ADAN_RELEASED"  # environment: a folder with the files at the official repository's own paths
URL = f"https://raw.githubusercontent.com/{REPOSITORY}/{COMMIT}"
ATTEMPTS = 3
PAUSE = 1.0  # s after the first of them, twice that after the second
TIMEOUT = 30  # s without an answer
CURE = "take a local copy with `python scripts/logs.py get --from DIR`"
PRESENT, MISSING, WRONG = "present", "missing", "wrong hash"


def folder() -> Path:
    """Return the folder of released files: what the environment names, or the cache of `logs.py get`."""
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
            f"{file.path} is not in {folder()}: get it with `python scripts/logs.py get`, "
            f"or set {VARIABLE} to a folder that has it"
        )
    return path


def read_log(row: Row) -> Log:
    """Return the released log of a row, its parts merged.

    Raises:
        LogError: no log was released with it, or it is not on this machine as it was released.
    """
    if not row.logs:
        raise LogError(f"{row.name}: no log was released with this row")
    paths = [locate(file) for file in row.logs]
    for file, path in zip(row.logs, paths, strict=True):
        if state(file, path) != PRESENT:
            raise LogError(
                f"{path}: is not what was released (its SHA-256 is not the ledger's): get it again with "
                "`python scripts/logs.py get`"
            )
    return read(paths)


def of_rows(rows: Sequence[str] = ()) -> dict[str, list[File]]:
    """Return the files that each of these rows of the ledger names; those of all rows by default.

    Raises:
        UserError: there is no such row, or two rows give one file different hashes.
    """
    files = {
        name: load(name).row.files for name in tqdm(rows or names(), "ledger", leave=False, disable=None)
    }
    unique([file for of_row in files.values() for file in of_row])
    return files


def unique(files: Sequence[File]) -> list[File]:
    """Return each file once.

    Raises:
        UserError: it is named with different hashes.
    """
    by_path: dict[str, File] = {}
    for file in files:
        known = by_path.setdefault(file.path, file)
        if known.sha256 != file.sha256:
            raise UserError(f"{file.path}: two rows of the ledger give it different SHA-256: "
                            f"{known.sha256} and {file.sha256}")  # fmt: skip
    return list(by_path.values())


def state(file: File, path: Path) -> str:
    """Return PRESENT, MISSING or WRONG for the copy of a file at `path`."""
    if not path.is_file():
        return MISSING
    return PRESENT if _hash(path) == file.sha256 else WRONG


@dataclass
class Fetched:
    """What became of the files that were asked for."""

    counts: Counter[str] = field(default_factory=Counter)  # fetched, already there, missing, wrong hash
    bytes: int = 0  # of the fetched ones
    problems: list[str] = field(default_factory=list)  # a line each

    @property
    def summary(self) -> str:
        """One line."""
        fetched = f"{self.counts['fetched']} fetched ({self.bytes:,} bytes)"
        others = ", ".join(f"{self.counts[key]} {key}" for key in ("already there", MISSING, WRONG))
        return f"{self.counts.total()} files: {fetched}, {others}"


def fetch(files: Sequence[File], to: Path, source: Path | None = None, url: str = URL) -> Fetched:
    """Bring files to the folder `to`, from the folder `source` or else from below `url`.

    A file appears under its name whole and when its checksum is right, not before, also where several
    processes get it at once; one that is there and right is left alone. They are small: after a lost
    connection a file is downloaded from its beginning.

    Raises:
        UserError: the server cannot be reached, the connection is lost in every attempt, or the disk refuses.
    """
    if source is not None and not source.is_dir():
        raise UserError(f"--from={source}: no such folder; it should have the official repository's files")
    fetched = Fetched()
    for file in tqdm(unique(files), "files", unit="file", disable=None):
        path = to / file.path
        try:
            copy = None if source is None else source / file.path
            _fetch(file, path, copy, f"{url}/{quote(file.path)}", fetched)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    return fetched


def _fetch(file: File, path: Path, copy: Path | None, url: str, fetched: Fetched) -> None:
    before = state(file, path)
    if before == PRESENT:
        fetched.counts["already there"] += 1
        return
    content: bytes | None = None
    if copy is None:
        content = _download(url)
    elif copy.is_file():
        content = copy.read_bytes()
    if content is None:
        fetched.counts[MISSING] += 1
        fetched.problems.append(f"{MISSING}: {copy or url}")
    elif (hashed := hashlib.sha256(content).hexdigest()) != file.sha256:
        fetched.counts[WRONG] += 1
        said = f"{copy or url} has {hashed}, the ledger {file.sha256}"
        fetched.problems.append(f"{WRONG}: {said}; not taken")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            new.write_bytes(content)
        fetched.counts["fetched"] += 1
        fetched.bytes += len(content)
        return
    if before == WRONG:
        fetched.problems.append(f"{WRONG}: {path} was there before, and stays as it is")


def _download(url: str) -> bytes | None:
    """Return what is at `url`, None if there is nothing.

    Raises:
        UserError: the server refuses or cannot be reached, or no attempt brings the whole file.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with urlopen(url, timeout=TIMEOUT) as response:
                return cast(bytes, response.read())
        except HTTPError as error:
            error.close()
            if error.code == 404:
                return None
            if error.code < 500:
                raise UserError(f"{url}: {error}; {CURE}") from error
            lost: Exception = error
        except URLError as error:
            raise UserError(f"cannot reach {url} ({error.reason}); {CURE}") from error
        except (ConnectionError, TimeoutError, HTTPException, ssl.SSLError) as error:
            lost = error
        time.sleep(PAUSE * attempt)
    raise UserError(f"{url}: failed {ATTEMPTS} times ({lost}); try again later, or {CURE}") from lost


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
