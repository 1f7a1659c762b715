"""Parameter groups: which parameters decay, and their learning rates."""

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any

from torch import nn

from .engine.checks import number, plain_number

SHOWN = 4  # names of parameters in a message, of hundreds


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    decay_bias_and_norm: bool = False,
    layer_decay: float | None = None,
    lr_scales: Mapping[str, float] | None = None,
    embedding_state_dtype: str | None = None,
) -> list[dict[str, Any]]:
    """Return the trainable parameters of a model as groups for an optimizer.

    Args:
        model: any module. If it has a method `no_weight_decay()` (timm), the parameters that it names, by
            full name, do not decay.
        lr: learning rate of the last layer; without layer_decay, of all layers.
        weight_decay: weight decay of the groups that decay.
        decay_bias_and_norm: also decay parameters of at most one dimension (biases, norms) and those that
            the model names.
        layer_decay: factor on the learning rate from each layer to the one before (BEiT, MAE); see
            `layer_ids`.
        lr_scales: factors on the learning rate by regular expressions, searched in the full names of the
            parameters; the first match counts. {"encoding": 10} is what NeRFs with hash grids use.
        embedding_state_dtype: a different state_dtype for the weights of `nn.Embedding` layers. 8-bit states
            work worst for tables with rarely used rows.

    Returns:
        Groups with params, lr, weight_decay and name, and state_dtype for embeddings if it was given. lr
        includes the factors. Schedules that scale each group's lr keep them (torch's and timm's); one
        that sets the same lr for all groups loses them (MAE's `lr_sched`).

    Raises:
        ValueError, TypeError: for an lr or weight_decay that is not a number >= 0, a model without trainable
            parameters, a layer_decay outside (0, 1], or one for a model without repeated layers, and for a
            pattern in lr_scales that is no regular expression or matches no parameter.
    """
    number("lr", lr)
    number("weight_decay", weight_decay)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError(f"{type(model).__name__} has no trainable parameters")
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay}: must be in (0, 1]")
    tables = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and embedding_state_dtype is not None
    }
    exempt = set(getattr(model, "no_weight_decay", set)())
    ids = layer_ids(model) if layer_decay is not None else {}
    last = max(ids.values(), default=0)
    scales = _scales(named, lr_scales or {})
    groups: dict[str, dict[str, Any]] = {}
    for name, p in named.items():
        decays = decay_bias_and_norm or not (p.ndim <= 1 or name.endswith(".bias") or name in exempt)
        factor, matched = scales.get(name, (1.0, ""))
        scale = factor * (1.0 if layer_decay is None else layer_decay ** (last - ids[name]))
        label = ("decay" if decays else "no_decay") + (f"_layer{ids[name]}" if ids else "") + matched
        decay = weight_decay if decays else 0.0
        special = {"state_dtype": embedding_state_dtype} if id(p) in tables else {}
        label += "_embedding" if special else ""
        group: dict[str, Any] = dict(params=[], lr=lr * scale, weight_decay=decay, name=label, **special)
        groups.setdefault(label, group)["params"].append(p)
    return list(groups.values())


def _scales(names: Collection[str], given: Mapping[str, float]) -> dict[str, tuple[float, str]]:
    """Return the factor of each parameter that a pattern matches, and a label for its group."""
    found: dict[str, tuple[float, str]] = {}
    for pattern, factor in given.items():
        factor = plain_number(f"lr_scales[{pattern!r}]", factor)
        try:
            matched = [name for name in names if re.search(pattern, name) and name not in found]
        except re.error as error:
            raise ValueError(f"lr_scales: {pattern!r} is no regular expression: {error}") from None
        if not matched:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise ValueError(
                f"lr_scales: {pattern!r} matches no trainable parameter that no pattern before it matches; "
                f"there are {', '.join(islice(names, SHOWN))}{more}"
            )
        found |= dict.fromkeys(matched, (float(factor), f"_{pattern}"))
    return found


def layer_ids(model: nn.Module) -> dict[str, int]:
    """Return the depth of each parameter: 0 before the first repeated block, i + 1 in block i, then one more.

    Blocks are the children of the innermost containers (`ModuleList`, `Sequential`; also the model itself)
    that hold two or more modules of one class with parameters, numbered through the whole model in the order
    of registration. Layers between two stages (downsampling) belong to the block that follows.

    Source: the layer ids of MAE's fine-tuning (cls token, position and patch embedding 0, block i + 1,
    the final norm and the head L + 1), but independent of names.

    Raises:
        ValueError: if there are no such blocks.
    """
    blocks = [name for name, _ in _blocks(model, "")]
    if not blocks:
        raise ValueError(f"layer_decay: found no repeated blocks in {type(model).__name__}")
    ids: dict[str, int] = {}
    done = 0  # blocks that have begun so far
    for name, _ in model.named_parameters():
        while done < len(blocks) and name.startswith(blocks[done] + "."):
            done += 1
        inside = done and name.startswith(blocks[done - 1] + ".")
        ids[name] = done if inside or not done else done + 1
    return ids


def _blocks(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    children = [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]
    inner = [block for name, child in children for block in _blocks(child, name)]
    if inner:
        yield from inner
    elif isinstance(module, (nn.ModuleList, nn.Sequential)):
        members = [(name, m) for name, m in children if any(True for _ in m.parameters())]
        if len(members) > 1 and len({type(m) for _, m in members}) == 1:
            yield from members
