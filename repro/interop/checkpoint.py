"""The common form of a checkpoint, and what its readers share."""

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
from repro.loading import parse_json, read_text
from repro.reading import UNPACKED, open_file
from repro.runs import flatten

Weights = dict[str, Tensor]


@dataclass
class Checkpoint:
    """The contents of a checkpoint, without what only its writer's program can use.

    Attributes:
        title: kind of checkpoint and its writer.
        weights: tensors of the model by name, without the prefixes of wrappers (`module.`, `_orig_mod.`).
        ema: averaged weights in the same form; empty if there are none.
        buffers: names of tensors in `weights` that are not parameters.
        optimizers: state dicts of optimizers by place, `file: key.key`.
        position: epoch and step, as the writer counts.
        metric: recorded quality, by name.
        settings: hyper-parameters, flat.
        model: name of the model, if the file has one.
        config: config.json of a model of transformers.
        foreign: names of classes and functions in it that were not loaded.
        notes: remarks, a line each.
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
        """Return the tensors that are parameters; one under several names counts once."""
        found: dict[Any, tuple[str, Tensor]] = {}
        for name, x in self.weights.items():
            if name not in self.buffers:
                found.setdefault(identity(x) if x.numel() else name, (name, x))
        return dict(found.values())


def load_safetensors(path: Path) -> tuple[Weights, dict[str, str]]:
    """Return the tensors and the metadata; a tensor stored once for two names gets both back.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    try:
        open_file(path).close()  # refuses a pipe, which load_file would wait for
        weights = load_file(path)
        with safe_open(path, "pt") as stored:
            metadata = dict(stored.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: it is damaged, or no safetensors file ({error})") from None
    names = {alias: kept for alias, kept in metadata.items() if kept in weights and alias not in weights}
    return weights | {alias: weights[kept] for alias, kept in names.items()}, metadata


def named(tree: Any) -> Weights:
    """Return the tensors in a state dict, nested or not, by dotted name without the prefixes of wrappers."""
    if not isinstance(tree, dict):
        return {}
    weights = {name.replace("_orig_mod.", ""): x for name, x in _dotted(tree, 8)}
    weights.pop("n_averaged", None)  # of torch's AveragedModel, whose other names begin with `module.`
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
    """Return whether a tensor of a state dict is a buffer, judged by its dtype and name."""
    last = name.rpartition(".")[2]
    return not (x.is_floating_point() or x.is_complex() or x.is_quantized) or last in (
        "running_mean", "running_var", "num_batches_tracked", "version", "_float_tensor", "inv_freq",
        "attn_mask",
    )  # fmt: skip


def settings_of(value: Any) -> dict[str, Any]:
    """Return hyper-parameters as a flat dict, whatever holds them; empty if there are none."""
    settings = unpickle.plain(value)
    flat = flatten(_with_text_keys(settings)) if isinstance(settings, dict) else {}
    return {name: number(x) if isinstance(x, Tensor) else x for name, x in flat.items()}


def _with_text_keys(tree: dict[Any, Any], depth: int = 20) -> dict[str, Any]:
    """Return a copy with text keys, cut below `depth` levels, as it may contain itself."""
    return {
        str(k): (_with_text_keys(v, depth - 1) if depth else "...") if isinstance(v, dict) else v
        for k, v in tree.items()
    }


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty if there is no such file.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    return parse_json(read_text(path, largest=UNPACKED), dict, path) if path.is_file() else {}


def mapping(value: Any) -> dict[Any, Any]:
    """Return `value` if it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def some(content: dict[Any, Any], **keys: str) -> dict[str, Any]:
    """Return the values at these keys of `content`, under new names, as plain data; None is left out."""
    return known({name: content.get(key) for name, key in keys.items()})


def known(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values other than None as plain data."""
    return {name: unpickle.plain(value) for name, value in values.items() if value is not None}


def text(value: Any) -> str | None:
    """Return `value` if it is a text."""
    return value if isinstance(value, str) else None
