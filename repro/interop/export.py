"""Weights of a checkpoint under the names of timm or transformers, proven by loading them there.

How each family's names are translated is in `timm_names` and `transformers_names`.
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
SAME = "same"  # the names as they are


@dataclass
class Export:
    """Weights to be written.

    Attributes:
        target: the model that they load into, None where the names are as they were.
        notes: what to know about them, a line each.
    """

    weights: Weights
    target: Target | None = None
    notes: list[str] = field(default_factory=list)


def architecture(found: Checkpoint) -> Architecture | None:
    """Return what the model of a checkpoint is, None if its names and shapes are not known."""
    return infer({name: shape(x) for name, x in found.weights.items()})


def translate(
    found: Checkpoint, library: str | None = None, ema: bool = False, heads: int | None = None
) -> Export:
    """Return the weights under the names of a library.

    Args:
        library: "timm", "transformers", "same" for the names as they are, or None for the one of the first
            two that has the architecture, else the names as they are.
        ema: take the averaged weights.
        heads: attention heads of a layer, where the checkpoint does not say.

    Raises:
        UserError: there are no such weights, or the library has no such model, or they do not load into it.
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
    """Write a safetensors file and return its size in bytes. It appears complete or not at all.

    A tensor under several names is stored once; the metadata says under which (as safetensors' save_model
    does). They also say where the weights are from, and what model they are of.

    Raises:
        UserError: the disk refused.
    """
    kept: dict[Any, str] = {}
    weights: Weights = {}
    metadata = {"format": "pt", "source": found.title, "file": found.path.name}
    for name, x in export.weights.items():
        first = kept.setdefault(identity(x) if x.numel() else name, name)
        if first == name:
            weights[name] = x.detach().contiguous().clone()  # no two of them within one storage
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
    """Yield a file to write next to `path`, which takes its place when all went well.

    Raises:
        UserError: the disk refused.
    """
    try:
        with publish.replacing(path) as temporary:
            yield temporary
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # torch.save reports a full disk as RuntimeError
        raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}") from None
