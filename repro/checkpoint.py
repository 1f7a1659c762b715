"""Checkpoints that survive a kill, a full disk and a damaged file.

A checkpoint is a folder `step-<step>` with the model's weights as safetensors, whatever else the writer puts
there, and `manifest.json` with the size and SHA-256 of every file. It appears complete or not at all.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from repro.errors import UserError

MANIFEST = "manifest.json"
MODEL = "model.safetensors"
EMA = "ema.safetensors"


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
        write: puts the files into the folder it is given.
        about: JSON-able facts for the manifest: `model` (name), `parameters` (count), ...
        main: of several processes that each write a part, whether this is the first.
        wait: then returns when all of them have called it.

    Raises:
        UserError: the disk refused. Nothing is left of the attempt; older checkpoints are as they were.
    """
    final = root / f"step-{step:09d}"
    temporary = root / f".tmp-{final.name}"
    wait = wait or (lambda: None)
    try:
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        wait()
        write(temporary)
        wait()
        if not main:
            return final
        files = {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())}
        text = json.dumps({"step": step, **about, "files": files}, indent=1)
        (temporary / MANIFEST).write_text(text + "\n")
        for path in temporary.iterdir():
            _flush(path)
        _flush(temporary)
        if final.exists():  # only ever a damaged one, passed over when the run was resumed
            shutil.rmtree(final)
        temporary.rename(final)
        _flush(root)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # torch.save reports a full disk as RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        reason = str(error).splitlines()[0]
        free = f"; {shutil.disk_usage(root).free >> 20} MiB are free there" if root.exists() else ""
        raise UserError(
            f"cannot write checkpoint {final}: {reason}{free}; older checkpoints are untouched: "
            "make room and run the same command again"
        ) from error
    return final


def newest(root: Path, warn: Callable[[str], None] = print) -> Path | None:
    """Return the newest undamaged checkpoint under `root`, or None where there is none at all.

    Raises:
        UserError: there are checkpoints, all of them damaged.
    """
    folders = sorted(root.glob("step-*"), reverse=True)
    for folder in folders:
        problem = damage(folder)
        if problem is None:
            return folder
        warn(f"warning: checkpoint {folder} is damaged ({problem}); falling back to the one before it")
    if folders:
        raise UserError(f"every checkpoint in {root} is damaged; run.overwrite=true starts afresh")
    return None


def damage(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint, or None if every file is as the manifest says."""
    try:
        files = read_manifest(folder)["files"]
    except (OSError, ValueError, KeyError):
        return f"{MANIFEST} is missing or unreadable"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}"
        if _fingerprint(path) != expected:
            return f"{name} has another SHA-256"
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return manifest


def prune(root: Path, keep: int, also: Iterable[str]) -> None:
    """Delete all checkpoints under `root` except the `keep` newest and those named in `also`."""
    for folder in sorted(root.glob("step-*"))[:-keep]:
        if folder.name not in also:
            # out of the way in one move, so that a kill in the middle cannot leave half a checkpoint
            doomed = folder.rename(folder.with_name(f".old-{folder.name}"))
            shutil.rmtree(doomed)


def clean(root: Path) -> None:
    """Remove what a killed process may have left half-written or half-deleted under `root`."""
    for pattern in (".tmp-*", ".old-*"):
        for leftover in root.glob(pattern):
            shutil.rmtree(leftover)


def best(path: Path) -> Path:
    """Return the best checkpoint of a run's folder, or its newest; any other path as it is.

    Raises:
        UserError: it is a run's folder, all of whose checkpoints are damaged.
    """
    last = newest(path / "checkpoints")
    return path if last is None else last.with_name(read_manifest(last).get("best") or last.name)


def first_difference(ours: Mapping[str, Sequence[int]], theirs: Mapping[str, Sequence[int]]) -> str | None:
    """Say what is different about the tensors of a checkpoint, by name and shape; None if nothing is."""
    for key in [*ours, *theirs]:
        if key not in theirs:
            return f"it has no {key}"
        if key not in ours:
            return f"its {key} has no place here"
        if list(ours[key]) != list(theirs[key]):
            return f"its {key} has shape {list(theirs[key])}, here it is {list(ours[key])}"
    return None


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _flush(path: Path) -> None:
    """Have the disk confirm a file's contents or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
