"""Export weights under the names of timm or transformers, checked by loading them there.

`timm_names` and `transformers_names` translate the names of each family.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from repro import publish
from repro.errors import UserError
from repro.interop import timm_names, transformers_names
from repro.interop.architectures import Architecture, infer
from repro.interop.checkpoint import Checkpoint, Weights
from repro.interop.states import MALFORMED
from repro.interop.target import Target, Unfit
from repro.interop.tensors import identity, require_values, shape

LIBRARIES = {"timm": timm_names.FAMILIES, "transformers": transformers_names.FAMILIES}
SAME = "same"  # keep the names


@dataclass
class Export:
    """Weights to be written.

    Attributes:
        target: the model that they load into; None if the names are unchanged.
        notes: remarks, a line each.
    """

    weights: Weights
    target: Target | None = None
    notes: list[str] = field(default_factory=list)


def architecture(found: Checkpoint) -> Architecture | None:
    """Return the architecture of a checkpoint's model, or None if its names and shapes are unknown."""
    return infer({name: shape(x) for name, x in found.weights.items()})


def translate(
    found: Checkpoint, library: str | None = None, ema: bool = False, heads: int | None = None
) -> Export:
    """Return the weights under the names of a library.

    Args:
        library: "timm", "transformers", or "same" to keep the names; None: the first of the two libraries
            that has the architecture, else "same".
        ema: take the averaged weights.
        heads: attention heads of a layer, if the checkpoint does not state them.

    Raises:
        UserError: there are no such weights, the library has no such model, or the weights do not load.
    """
    weights = found.ema if ema else found.weights
    if not weights:
        places = "; its optimizer's state can be converted" if found.optimizers else ""
        raise UserError(f"{found.path} has no {'averaged ' if ema else ''}weights to export{places}")
    require_values(weights, found.path)
    if library == SAME:
        return Export(weights)
    known = architecture(found)
    family = known.family if known else None
    chosen = [library] if library else list(LIBRARIES)
    make = next((LIBRARIES[name][family] for name in chosen if family in LIBRARIES[name]), None)
    if found.config and "transformers" in chosen:
        target, translated, notes = transformers_names.own(found, weights)
    elif known and make:
        try:
            target, translated, notes = make(found, weights, known, heads)
        except (ValueError, *MALFORMED) as error:
            raise UserError(f"{found.path}: not the tensors of {known} ({error!r:.150})") from None
    elif library is None:
        return Export(weights, notes=["no translation for this architecture: the names are as they were"])
    else:
        raise UserError(f"{found.path} holds {known or 'an unknown model'}: no translation for {library}")
    try:
        target.check(translated)
    except ImportError:
        notes.append(f"not checked: {target.library} is not installed")
    except Unfit as error:
        raise UserError(f"{found.path} does not fit {target}: {error}; --for same keeps its names") from None
    else:
        notes.append(f"checked: loads strictly into {target}")
    return Export(translated, target, notes)


def write(export: Export, found: Checkpoint, path: Path) -> int:
    """Write a safetensors file, atomically, and return its size in bytes.

    A tensor under several names is stored once, and the metadata map the others to it (as safetensors'
    save_model does). They also name the source and the model.

    Raises:
        UserError: the file cannot be written.
    """
    kept: dict[Any, str] = {}
    weights: Weights = {}
    metadata = {"format": "pt", "source": found.title, "file": found.path.name}
    for name, x in export.weights.items():
        first = kept.setdefault(identity(x) if x.numel() else name, name)
        if first == name:
            weights[name] = x.detach().contiguous().clone()  # with a storage of its own
        else:
            metadata[name] = first
    known = architecture(found)
    target = export.target
    facts: dict[str, str | None] = {
        "architecture": str(known) if known else None,
        "model": target.model if target else found.model,
        "library": target.library if target else None,
        "config": json.dumps(target.config) if target else None,
        **{key: str(value) for key, value in found.position.items()},
    }
    metadata |= {key: value for key, value in facts.items() if value is not None}
    with replacing(path) as temporary:
        save_file(weights, temporary, metadata)
    return path.stat().st_size


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a file next to `path` that replaces it at the end of the block, unless the block fails.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with publish.replacing(path) as temporary:
            yield temporary
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is a RuntimeError of torch.save
        raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}") from None
