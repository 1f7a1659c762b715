"""A checkpoint as this package sees it, and what its readers share."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from repro.errors import UserError
from repro.interop import unpickle
from repro.interop.tensors import detached, identity, number
from repro.reading import open_file, parse_json, read_bytes
from repro.runs import flatten

Weights = dict[str, Tensor]


@dataclass
class Checkpoint:
    """A checkpoint as its writer left it, without what only that writer's program could use.

    Attributes:
        title: what wrote it.
        weights: tensors of the model by name, without the prefixes of wrappers (`module.`, `_orig_mod.`).
        ema: averaged weights in the same way; empty if there are none.
        buffers: names of tensors in `weights` that are no parameters.
        optimizers: state dicts of optimizers by place, `file: key.key`.
        position: epoch and step, as the writer counts.
        metric: what it kept of the quality: the name, and the value.
        settings: hyper-parameters, flat.
        model: the model's name, where the file has one.
        config: of a model of transformers, as its config.json has it.
        foreign: names of classes and functions in it that were not loaded.
        notes: what a reader should know, a line each.
    """

    path: Path
    title: str
    weights: Weights = field(default_factory=dict)
    ema: Weights = field(default_factory=dict)
    buffers: set[str] = field(default_factory=set)
    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    position: dict[str, Any] = field(default_factory=dict)
    metric: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def parameters(self) -> Weights:
        """Return the tensors that are parameters, those under several names once."""
        found: dict[Any, tuple[str, Tensor]] = {}
        for name, x in self.weights.items():
            if name not in self.buffers:
                found.setdefault(identity(x) if x.numel() else name, (name, x))
        return dict(found.values())


def load_safetensors(path: Path) -> tuple[Weights, dict[str, str]]:
    """Return the tensors and the metadata; a tensor that was stored once for two names has both again.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    try:
        open_file(path).close()  # a pipe would be waited for
        weights = load_file(path)
        with safe_open(path, "pt") as stored:
            metadata = dict(stored.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: it is damaged, or no safetensors file ({error})") from None
    names = {alias: kept for alias, kept in metadata.items() if kept in weights and alias not in weights}
    return weights | {alias: weights[kept] for alias, kept in names.items()}, metadata


def named(tree: Any) -> Weights:
    """The tensors in a state dict, nested or not, with dotted names and without the prefixes of wrappers."""
    if not isinstance(tree, dict):
        return {}
    weights = {name.replace("_orig_mod.", ""): x for name, x in _dotted(tree, 8)}
    weights.pop("n_averaged", None)  # of torch's AveragedModel, whose names begin with module, too
    while weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): x for name, x in weights.items()}
    return weights


def _dotted(tree: dict[Any, Any], depth: int) -> Iterator[tuple[str, Tensor]]:
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield str(key), detached(value)
        elif isinstance(value, dict) and depth:
            yield from ((f"{key}.{name}", x) for name, x in _dotted(value, depth - 1))


def is_buffer(name: str, x: Tensor) -> bool:
    """Whether a tensor of a state dict, which does not say, is no parameter: by its type and name."""
    last = name.rpartition(".")[2]
    return not (x.is_floating_point() or x.is_complex() or x.is_quantized) or last in (
        "running_mean", "running_var", "num_batches_tracked", "version", "_float_tensor", "inv_freq",
        "attn_mask",
    )  # fmt: skip


def settings_of(value: Any) -> dict[str, Any]:
    """Hyper-parameters as a flat dict, from whatever holds them; empty if it holds none."""
    settings = unpickle.plain(value)
    flat = flatten(_with_text_keys(settings)) if isinstance(settings, dict) else {}
    return {name: number(x) if isinstance(x, Tensor) else x for name, x in flat.items()}


def _with_text_keys(tree: dict[Any, Any], depth: int = 20) -> dict[str, Any]:
    """The same with names for all keys; what is deeper than `depth` is cut (it may contain itself)."""
    return {
        str(k): (_with_text_keys(v, depth - 1) if depth else "...") if isinstance(v, dict) else v
        for k, v in tree.items()
    }


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = parse_json(read_bytes(path))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object")
    return content


def mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def some(content: dict[Any, Any], **keys: str) -> dict[str, Any]:
    return known({name: content.get(key) for name, key in keys.items()})


def known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: unpickle.plain(value) for name, value in values.items() if value is not None}


def text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
