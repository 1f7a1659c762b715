"""Where the released files are on this machine, and how to get them; they are no part of this project."""

import fcntl
import hashlib
import os
import shutil
import ssl
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from tqdm import tqdm  # type: ignore[import-untyped]

from repro.errors import UserError
from repro.ledger.rows import COMMIT, REPOSITORY, File, Row, load, names
from repro.logs import read
from repro.logs.log import Log, LogError

VARIABLE = "ADAN_RELEASED"  # environment: a folder with the files at the official repository's own paths
URL = f"https://raw.githubusercontent.com/{REPOSITORY}/{COMMIT}"
ATTEMPTS = 3  # in a row that bring nothing
PAUSE = 1.0  # s after the first of them, twice that after the second
TIMEOUT = 30  # s without an answer
CHUNK = 1 << 16
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

    A file appears under its name when its checksum is right, not before; one that is there and right is left
    alone. What a download has so far is in `NAME.part`, which the next one continues. Where several processes
    want a file at once, one of them gets it and the others wait.

    Raises:
        UserError: the server cannot be reached, the connection is lost again and again, or the disk refuses.
    """
    if source is not None and not source.is_dir():
        raise UserError(f"--from={source}: no such folder; it should have the official repository's files")
    fetched = Fetched()
    for file in tqdm(unique(files), "files", unit="file", disable=None):
        path = to / file.path
        try:
            _fetch(
                file,
                path,
                None if source is None else source / file.path,
                f"{url}/{quote(file.path)}",
                fetched,
            )
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    return fetched


def _fetch(file: File, path: Path, copy: Path | None, url: str, fetched: Fetched) -> None:
    if state(file, path) == PRESENT:
        fetched.counts["already there"] += 1
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with _held(part):
        before = state(file, path)  # another process may have got it meanwhile
        if before == PRESENT:
            fetched.counts["already there"] += 1
            return
        continued = part.stat().st_size > 0
        found = _download(url, part) if copy is None else _copy(copy, part)
        if found and continued and copy is None and _hash(part) != file.sha256:
            os.truncate(part, 0)  # what it continued was no good
            found = _download(url, part)
        if not found:
            fetched.counts[MISSING] += 1
            fetched.problems.append(f"{MISSING}: {copy or url}")
        elif (hashed := _hash(part)) != file.sha256:
            part.unlink()
            fetched.counts[WRONG] += 1
            said = f"{copy or url} has {hashed}, the ledger {file.sha256}"
            fetched.problems.append(f"{WRONG}: {said}; not taken")
        else:
            fetched.counts["fetched"] += 1
            fetched.bytes += part.stat().st_size
            part.replace(path)
    if before == WRONG and path.is_file() and state(file, path) == WRONG:
        fetched.problems.append(f"{WRONG}: {path} was there before, and stays as it is")


@contextmanager
def _held(part: Path) -> Iterator[None]:
    """Hold a file, created if need be, while other processes wait for it; one that stays empty is removed."""

    def same() -> bool:
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file.fileno()), part.stat())
        return False

    while True:
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not same():
                continue  # who held it has published or removed it
            try:
                yield
            finally:
                if same() and part.stat().st_size == 0:
                    part.unlink()
            return


def _copy(source: Path, part: Path) -> bool:
    if not source.is_file():
        return False
    shutil.copyfile(source, part)
    return True


def _download(url: str, part: Path) -> bool:
    """Download to `part`, from where it ends; return False if there is no such file."""
    attempts = 0
    while True:
        size = part.stat().st_size if part.exists() else 0
        request = Request(url, headers={"Range": f"bytes={size}-"} if size else {})
        try:
            with urlopen(request, timeout=TIMEOUT) as response:
                _receive(response, part)
            return True
        except HTTPError as error:
            error.close()
            if error.code == 404:
                return False
            if error.code == 416 and size:  # nothing is left to get: it is whole, or no part of this file
                return True
            if error.code < 500:
                raise UserError(f"{url}: {error}; {CURE}") from error
            lost: Exception = error
        except URLError as error:
            raise UserError(f"cannot reach {url} ({error.reason}); {CURE}") from error
        except (ConnectionError, TimeoutError, HTTPException, ssl.SSLError) as error:
            lost = error  # go on from there
        now = part.stat().st_size if part.exists() else 0
        attempts = 0 if now > size else attempts + 1
        if attempts == ATTEMPTS:
            raise UserError(
                f"{url}: failed again and again ({lost}); the same command continues later"
            ) from lost
        time.sleep(PAUSE * attempts)


def _receive(response: HTTPResponse, part: Path) -> None:
    """Append what comes to `part`; write it again if the server sends the file from its beginning.

    Raises:
        ConnectionError: less came than was announced.
    """
    expected = response.length
    with (
        part.open("ab" if response.status == 206 else "wb") as file,
        tqdm(total=expected, desc=part.stem, unit="B", unit_scale=True, leave=False, disable=None) as bar,
    ):
        received = 0
        while chunk := response.read(CHUNK):
            file.write(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    if expected is not None and received < expected:
        raise ConnectionError(f"the connection was lost {expected - received} bytes before the end")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
