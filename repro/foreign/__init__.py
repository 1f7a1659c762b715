"""Checkpoints of any writer: what is in them, and their weights under the names of timm and transformers."""

from pathlib import Path

from repro.errors import UserError
from repro.foreign.content import Checkpoint, is_buffer
from repro.foreign.files import read_file
from repro.foreign.folders import read_folder

__all__ = ["Checkpoint", "read"]


def read(path: Path) -> Checkpoint:
    """Read a checkpoint file or folder.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if not path.exists():
        raise UserError(f"cannot read {path}: no such file or folder")
    found = read_folder(path) if path.is_dir() else read_file(path)
    if not found.buffers:
        found.buffers = {name for name, x in found.weights.items() if is_buffer(name, x)}
    return found
