"""Composed rows in the user's cache folder: Hydra takes a seventh of a second for each.

What a row is made of is known by its hash: all configurations, the code of the schemas and resolvers, and the
versions of Hydra and OmegaConf. A file that was made of something else, or that cannot be read, written or
trusted, costs a composition and nothing else.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from repro import publish

CODE = ("repro", "vision", "nlp", "llm")  # folders with schemas and resolvers
ROOT = Path(__file__).resolve().parents[2]

Made = TypeVar("Made")


@functools.cache
def origin(configs: Path) -> str:
    """Return the hash of everything that determines the rows of a folder of configurations."""
    found = hashlib.sha256()
    for package in ("hydra-core", "omegaconf"):
        found.update(metadata.version(package).encode())
    for folder, suffix in ((configs, ".yaml"), *((ROOT / name, ".py") for name in CODE)):
        for here, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(name for name in names if name.endswith(suffix)):
                path = Path(here, name)
                content = path.read_bytes()
                found.update(f"{folder.name}/{path.relative_to(folder)} {len(content)}\n".encode())
                found.update(content)
    return found.hexdigest()


def read(name: str, configs: Path, make: Callable[[dict[str, Any]], Made]) -> Made | None:
    """Return the result of `make` for what `write` was given for a row, or None."""
    with contextlib.suppress(OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError):
        found = json.loads(publish.stored(_path(name)) or "{}")
        if found.get("origin") == origin(configs):
            return make(found["content"])
    return None


def write(name: str, configs: Path, content: dict[str, Any]) -> None:
    """Keep the content of a row, plain data, if the folder can be written to and JSON does not change it."""
    with contextlib.suppress(OSError, RuntimeError, TypeError, ValueError):
        text = json.dumps({"origin": origin(configs), "content": content})
        if json.loads(text)["content"] == content:
            publish.store(_path(name), text.encode())


def _path(name: str) -> Path:
    """Return the file of a row; RuntimeError if the user has no home."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return caches / "adan-ledger" / f"{name}.cache"
