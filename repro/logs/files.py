"""Find and fetch the released files, which are not part of this project."""

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
from repro.reading import sha256

VARIABLE = "ADAN_RELEASED"  # environment variable: a folder with the paths of the official repository
URL = f"https://raw.githubusercontent.com/{REPOSITORY}/{COMMIT}"
ATTEMPTS = 3
PAUSE = 1.0  # s after the first attempt, twice that after the second
TIMEOUT = 30  # s without an answer
CURE = "take a local copy with `python scripts/logs.py get --from DIR`"
PRESENT, MISSING, WRONG = "present", "missing", "wrong hash"


def folder() -> Path:
    """Return the folder of released files: that of the environment, or else the cache of `logs.py get`."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "adan-optim" / "released" / COMMIT[:12]


def locate(file: File) -> Path:
    """Return the path of a released file.

    Raises:
        LogError: there is no such file.
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
        LogError: no log was released with the row, or it is not here, or differs from the released one.
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
    """Return the files of some rows of the ledger (default: all), by row.

    Raises:
        UserError: a row does not exist, or two rows give one file different hashes.
    """
    bar = tqdm(rows or names(), "ledger", leave=False, disable=None)
    files = {name: load(name).row.files for name in bar}
    unique([file for of_row in files.values() for file in of_row])
    return files


def unique(files: Sequence[File]) -> list[File]:
    """Return each file once.

    Raises:
        UserError: a file has different hashes.
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
    return PRESENT if sha256(path) == file.sha256 else WRONG


@dataclass
class Fetched:
    """The result of fetching files."""

    counts: Counter[str] = field(default_factory=Counter)  # fetched, already there, missing, wrong hash
    bytes: int = 0  # fetched
    problems: list[str] = field(default_factory=list)  # a line each

    @property
    def summary(self) -> str:
        """One line."""
        fetched = f"{self.counts['fetched']} fetched ({self.bytes:,} bytes)"
        others = ", ".join(f"{self.counts[key]} {key}" for key in ("already there", MISSING, WRONG))
        return f"{self.counts.total()} files: {fetched}, {others}"


def fetch(files: Sequence[File], to: Path, source: Path | None = None, url: str = URL) -> Fetched:
    """Copy files to the folder `to`, from the folder `source` or else from below `url`.

    A file appears only when it is whole and its checksum is right, also if several processes fetch it. One
    that is already right is left alone. The files are small: a lost connection starts a file over.

    Raises:
        UserError: the server cannot be reached, every attempt fails, or a file cannot be written.
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
    """Return the content at `url`, or None for status 404.

    Raises:
        UserError: the server refuses or cannot be reached, or every attempt fails.
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
