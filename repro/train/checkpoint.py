"""Checkpoints that survive a kill, a full disk and a damaged file.

A checkpoint is a folder `step-<step>` with the model's weights as safetensors, the writer's other files, and
`manifest.json` with the size and SHA-256 of every file and a SHA-256 of its own. It appears complete or not
at all. Nothing is ever removed except checkpoints and their remains after a kill, which have known names.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from repro.errors import UserError
from repro.loading import Unreadable, parse_json, read_text
from repro.reading import sha256

MANIFEST = "manifest.json"
MODEL = "model.safetensors"
EMA = "ema.safetensors"

_NAME = re.compile(r"step-\d{9,}")
_LEFTOVER = re.compile(r"\.(tmp|old)-step-\d{9,}")
_UNSIGNED = {"step", "model", "parameters", "best", "files"}  # keys of an older manifest, without a digest


def save(
    root: Path,
    step: int,
    write: Callable[[Path], None],
    about: dict[str, Any],
    main: bool = True,
    wait: Callable[[], None] | None = None,
) -> Path:
    """Create the checkpoint of `step` under `root`.

    Args:
        write: writes the files into the folder that it is given.
        about: JSON-able facts for the manifest: `model` (name), `parameters` (count), ...
        main: whether this is the first of several processes that each write a part.
        wait: a barrier of these processes.

    Raises:
        UserError: the files cannot be written. Nothing is left of the attempt; older checkpoints are intact.
    """
    final = root / f"step-{step:09d}"
    temporary = root / f".tmp-{final.name}"
    wait = wait or (lambda: None)
    try:
        if main:
            remove(temporary)
            temporary.mkdir(parents=True)
        wait()
        write(temporary)
        wait()
        if not main:
            return final
        files = {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(_signed({"step": step, **about, "files": files}))
        for path in temporary.iterdir():
            _flush(path)
        _flush(temporary)
        remove(final)  # if it exists, it is damaged and was skipped when the run was resumed
        temporary.rename(final)
        _flush(root)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is a RuntimeError of torch.save
        with contextlib.suppress(OSError):
            remove(temporary)
        reason = str(error).splitlines()[0]
        free = f"; {shutil.disk_usage(root).free >> 20} MiB are free there" if root.exists() else ""
        raise UserError(
            f"cannot write checkpoint {final}: {reason}{free}; older checkpoints are untouched: "
            "make room and run the same command again"
        ) from error
    return final


def newest(root: Path, warn: Callable[[str], None] = print) -> Path | None:
    """Return the newest undamaged checkpoint under `root`, or None if there is no checkpoint.

    Raises:
        UserError: all checkpoints are damaged.
    """
    folders = _all(root)
    for folder in reversed(folders):
        problem = damage(folder)
        if problem is None:
            return folder
        warn(f"warning: checkpoint {folder} is damaged ({problem}); falling back to the one before it")
    if folders:
        raise UserError(f"every checkpoint in {root} is damaged; run.overwrite=true starts over")
    return None


def damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if every file matches the manifest."""
    try:
        files = read_manifest(folder)["files"]
    except Unreadable as error:
        return str(error).removeprefix(f"{folder}/")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}"
        try:
            found = _fingerprint(path)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
        if found != expected:
            return f"{name} has another SHA-256"
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint, without its digest.

    Raises:
        Unreadable: it is missing or damaged.
    """
    path = folder / MANIFEST
    text = read_text(path)
    manifest = parse_json(text, dict, path)
    signed = "sha256" in manifest
    manifest.pop("sha256", None)
    if (signed and text != _signed(manifest)) or not (signed or manifest.keys() == _UNSIGNED):
        raise Unreadable(path, "not as it was written")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(
        isinstance(entry, dict) and entry.keys() == {"bytes", "sha256"} for entry in files.values()
    ):
        raise Unreadable(path, "it lists no files")
    return manifest


def prune(root: Path, keep: int, also: Iterable[str]) -> None:
    """Delete all checkpoints under `root` except the `keep` newest and those named in `also`."""
    for folder in _all(root)[:-keep]:
        if folder.name not in also:
            _drop(folder)


def clean(root: Path) -> None:
    """Remove what a killed process left half-written or half-deleted under `root`."""
    for path in list(root.iterdir()) if root.is_dir() else []:
        if _LEFTOVER.fullmatch(path.name):
            remove(path)


def discard(root: Path) -> None:
    """Remove every checkpoint under `root`, and `root` itself if it is then empty and not a link."""
    clean(root)
    for folder in _all(root):
        _drop(folder)
    if root.is_dir() and not root.is_symlink() and not any(root.iterdir()):
        root.rmdir()


def best(path: Path) -> Path:
    """Return the best checkpoint of a run's folder, or else its newest; any other path unchanged.

    Raises:
        UserError: all checkpoints of the run are damaged.
    """
    last = newest(path / "checkpoints")
    return path if last is None else last.with_name(read_manifest(last).get("best") or last.name)


def first_difference(ours: Mapping[str, Sequence[int]], theirs: Mapping[str, Sequence[int]]) -> str | None:
    """Return the first difference between two checkpoints, given as shapes by name, or None."""
    for key in [*ours, *theirs]:
        if key not in theirs:
            return f"it has no {key}"
        if key not in ours:
            return f"its {key} has no place here"
        if list(ours[key]) != list(theirs[key]):
            return f"its {key} has shape {list(theirs[key])}, here it is {list(ours[key])}"
    return None


def _all(root: Path) -> list[Path]:
    """Return the checkpoints under `root`, damaged or not, oldest first."""
    found = [path for path in (root.iterdir() if root.is_dir() else ()) if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _drop(folder: Path) -> None:
    """Delete a checkpoint; it is renamed first, so that a kill leaves no partial one."""
    doomed = folder.with_name(f".old-{folder.name}")
    remove(doomed)
    remove(folder.rename(doomed))


def remove(path: Path) -> None:
    """Remove a file or folder if it exists; of a link, only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _signed(manifest: dict[str, Any]) -> str:
    """Return the text of a manifest, with the SHA-256 of the rest as its first entry."""
    digest = hashlib.sha256(json.dumps(manifest, indent=1).encode()).hexdigest()
    return json.dumps({"sha256": digest, **manifest}, indent=1) + "\n"


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _flush(path: Path) -> None:
    """Flush a file's contents or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
