"""Write files atomically, also from several processes, and caches that detect damage."""

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repro.errors import UserError
from repro.reading import read_bytes

_DIGEST = hashlib.sha256().digest_size


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an unused name `.tmp-HEX-NAME` next to `path`; the file written there replaces `path`.

    If the block fails, `path` is unchanged and nothing is left next to it. Several processes may write one
    path at once: each publishes a whole file, and the last one stays.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # a power failure must not leave the name without the content
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a line of JSON to a file, for `repro.loading.read_lines`; several processes may do so at once.

    An incomplete last line is cut off first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(record).encode() + b"\n")


def is_leftover(name: str, final: str) -> bool:
    """Return whether `name` is a remnant of the file `final` after a kill."""
    return re.fullmatch(rf"\.tmp-([0-9a-f]+-)?{re.escape(final)}", name) is not None


def clear(folder: Path, *names: str) -> None:
    """Remove the remnants of the files `names` in a folder that this process holds (see `alone`)."""
    for path in list(folder.glob(".tmp-*")):
        if any(is_leftover(path.name, name) for name in names):
            path.unlink()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder through its file `.lock`; the system releases it when the process dies.

    Raises:
        UserError: another process holds it.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{folder}: another process is writing there; wait for it") from error
        yield


def store(path: Path, content: bytes) -> None:
    """Write a cache file for `stored`: the SHA-256 of the content, then the content.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(hashlib.sha256(content).digest() + content)


def stored(path: Path) -> bytes | None:
    """Return the content of a cache file, or None if it is missing or damaged."""
    try:
        file = read_bytes(path)
    except OSError:
        return None
    content = file[_DIGEST:]
    return content if hashlib.sha256(content).digest() == file[:_DIGEST] else None
