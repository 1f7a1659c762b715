"""Read checkpoints of any writer, and rename their weights for timm and transformers."""

from pathlib import Path

from repro.errors import UserError
from repro.interop.checkpoint import Checkpoint, Weights, is_buffer
from repro.interop.files import read_file
from repro.interop.folders import read_folder
from repro.interop.tensors import require_values
from repro.train.checkpoint import best

__all__ = ["Checkpoint", "Weights", "read", "read_weights"]


def read(path: Path) -> Checkpoint:
    """Read a checkpoint file or folder.

    Raises:
        UserError: there is no such file or folder, or it cannot be read.
    """
    if not path.exists():
        raise UserError(f"cannot read {path}: no such file or folder")
    found = read_folder(path) if path.is_dir() else read_file(path)
    if not found.buffers:
        found.buffers = {name for name, x in found.weights.items() if is_buffer(name, x)}
    return found


def read_weights(path: Path, kind: str | None = None) -> tuple[Weights, Checkpoint]:
    """Return the weights to use from a checkpoint, and the checkpoint: the best one if `path` is our run.

    Args:
        kind: "model" or "ema" (averaged); None: averaged weights if there are any.

    Raises:
        UserError: the checkpoint cannot be read, or has no weights of that kind.
    """
    found = read(best(path))
    weights = found.weights if kind == "model" or (kind is None and not found.ema) else found.ema
    if not weights:
        raise UserError(f"{found.path} ({found.title}) has no {'averaged ' if kind == 'ema' else ''}weights")
    require_values(weights, found.path)
    return weights, found
