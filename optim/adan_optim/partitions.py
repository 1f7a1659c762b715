"""Blocks of elements that share a second moment in Adam-mini, from the structure of a model.

The paper (arXiv 2406.16793) uses the blocks of the Hessian: a head of the query and key projections, an
output row of other matrices, a token of an embedding.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from .engine.blocks import Shape, canonical, default, fits
from .engine.checks import whole_number
from .text import aligned

# Names of the projections in attention modules, and of the sizes in such a module or its model's
# configuration, in torch, transformers, timm, Llama and nanoGPT.
QUERY = ("q_proj", "q_proj_weight", "q", "wq", "query", "q_lin", "q_attn", "q_b_proj", "to_q")
KEY = ("k_proj", "k_proj_weight", "k", "wk", "key", "k_lin", "to_k")
FUSED = ("in_proj_weight", "qkv", "qkv_proj", "c_attn", "query_key_value", "Wqkv", "wqkv", "to_qkv")
HEAD_DIM = ("head_dim", "head_size", "attention_head_size", "key_value_proj_dim", "d_kv", "dim_head")
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head")
EXPERTS = ("num_experts", "num_local_experts", "n_experts", "n_routed_experts")

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)

Rule = str | int | Sequence[int]


class Entry(NamedTuple):
    """The blocks of one parameter, in the form of `adan_optim.engine.blocks`, and the reason for them."""

    param: Tensor
    blocks: Shape
    reason: str


class Partition(dict[str, Entry]):
    """The entries of a model's trainable parameters by name; `str` makes a readable table of it."""

    def blocks_of(self, params: Sequence[Tensor], names: Sequence[str]) -> dict[Tensor, Shape]:
        """Return the blocks of parameters of any shape, found by identity, or by name if there are names.

        Raises:
            ValueError: for a parameter that is missing or has another shape.
        """
        known = {entry.param: entry for entry in self.values()}
        found = {}
        for i, p in enumerate(params):
            entry = known.get(p) or (self.get(names[i]) if names else None)
            name = names[i] if names else f"parameter {i}"
            if entry is None or entry.param.shape != p.shape:
                raise ValueError(
                    f"{name} of shape {tuple(p.shape)} is not in the partition: make it from this model, and "
                    "give named parameters if they have been replaced since"
                )
            found[p] = entry.blocks
        return found

    def __str__(self) -> str:
        rows = [("parameter", "shape", "blocks", "why")]
        rows += [(n, _by(e.param.shape), _by(e.blocks), e.reason) for n, e in self.items()]
        elements = sum(entry.param.numel() for entry in self.values())
        count = sum(math.prod(entry.blocks) for entry in self.values())
        share = 100 * (1 - count / max(elements, 1))
        total = f"{elements} elements in {count} blocks: {share:.2f} % of v is removed"
        return "\n".join([*aligned(rows), total])


def partition(
    model: nn.Module,
    *,
    n_heads: int | None = None,
    n_kv_heads: int | None = None,
    head_dim: int | None = None,
    rules: Mapping[type | str | Tensor, Rule] | None = None,
) -> Partition:
    """Return the blocks of a model's trainable parameters.

    The first of these that applies determines them: a rule in `rules`; a head, for query, key and fused
    projections of attention modules, if the number of heads is known from these arguments, the module or a
    `config`; the type of the module that owns the parameter; the shape (`adan_optim.engine.blocks.default`).

    Args:
        model: any module.
        n_heads: query heads of all attention modules; None asks the modules.
        n_kv_heads: key heads; None gives a key head as many rows as a query head.
        head_dim: rows of a head.
        rules: maps a module type (all its parameters except biases), a regular expression (searched in the
            name of the parameter) or a parameter to "row", "column", "tensor", "element", a number of
            consecutive blocks, or parts of every dimension (see `adan_optim.engine.blocks`). The first match
            counts.

    Raises:
        ValueError: for a rule that does not divide a parameter, or matches none.

    Example:
        >>> print(partition(nn.Linear(8, 4, bias=False)))
        parameter  shape  blocks  why
        weight     4 x 8  4       Linear: output row
        32 elements in 4 blocks: 87.50 % of v is removed
    """
    asked = dict(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim)
    for key, value in asked.items():
        if value is not None:
            whole_number(key, value)
    proposed, owners = _proposals(model, asked)
    given = dict(rules or {})
    entries, used = Partition(), set()
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        blocks, reason = proposed[p]
        for match, rule in given.items():
            if _matches(match, name, p, owners[p]):
                used.add(match)
                blocks, reason = _by_rule(rule, name, p.shape), f"rule: {rule}"
                break
        tied = ", tied" if len(owners[p]) > 1 else ""
        entries[name] = Entry(p, canonical(p.shape, blocks), reason + tied)
    for match in given.keys() - used:
        what = f"a parameter of shape {tuple(match.shape)}" if isinstance(match, Tensor) else repr(match)
        raise ValueError(f"the rule for {what} matches no trainable parameter, or only after another rule")
    return entries


def _proposals(
    model: nn.Module, asked: Mapping[str, int | None]
) -> tuple[dict[Tensor, tuple[Shape, str]], dict[Tensor, list[tuple[nn.Module, str]]]]:
    """The blocks of each parameter with the reason, without `rules`, and the modules that own it."""
    proposed: dict[Tensor, tuple[Shape, str]] = {}
    owners: dict[Tensor, list[tuple[nn.Module, str]]] = {}
    for path, module in model.named_modules():  # attention modules come before their projections
        sources = (module, getattr(module, "config", None), getattr(model, "config", None))
        for weight, blocks, reason in _heads(path, module, sources, asked):
            proposed.setdefault(weight, (blocks, reason))
        for attribute, p in module.named_parameters(recurse=False):
            owners.setdefault(p, []).append((module, attribute))
            proposed.setdefault(p, _by_type(module, attribute, p))
    return proposed, owners


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "1"


def _is_bias(attribute: str) -> bool:
    return attribute.startswith("bias") or attribute.endswith("bias")


def _number(source: Any, names: Sequence[str]) -> int | None:
    """The first of these attributes that is a positive integer."""
    values = (getattr(source, name, None) for name in names)
    return next((x for x in values if isinstance(x, int) and not isinstance(x, bool) and x > 0), None)


def _is_conv1d(module: nn.Module) -> bool:
    """Whether this is the linear layer of GPT-2 in transformers, whose weight is [in, out]."""
    return hasattr(module, "nf") and any(cls.__name__ == "Conv1D" for cls in type(module).__mro__)


def _projections(module: nn.Module) -> Iterator[tuple[str, tuple[str, ...], Tensor, int]]:
    """The name, role, weight [out, in] ([in, out] of a Conv1D) and output dimension of each projection."""
    for role in (QUERY, KEY, FUSED):  # queries first: they determine the sizes
        for name in role:
            part = getattr(module, name, None)
            part = getattr(part, "base_layer", part)  # of LoRA
            if isinstance(part, nn.Parameter) and part.ndim == 2:
                yield name, role, part, 0
            elif isinstance(part, nn.Linear):
                yield f"{name}.weight", role, part.weight, 0
            elif isinstance(part, nn.Module) and _is_conv1d(part):
                yield f"{name}.weight", role, part.get_parameter("weight"), 1


def _heads(
    path: str, module: nn.Module, sources: Sequence[Any], asked: Mapping[str, int | None]
) -> Iterator[tuple[Tensor, Shape, str]]:
    """The weights in blocks by heads: a head's output rows (columns of a Conv1D)."""
    size = asked["head_dim"]
    for name, role, weight, dim in _projections(module):
        rows = weight.shape[dim]
        heads, kv_heads = asked["n_heads"], asked["n_kv_heads"]
        for source in sources:
            if size is None and heads is None:
                size, heads = _number(source, HEAD_DIM), _number(source, HEADS)
                kv_heads = kv_heads or _number(source, KV_HEADS)
        if size is None and heads is not None and role is not KEY:
            parts = heads if role is QUERY else heads + 2 * (kv_heads or heads)
            size = rows // parts if rows % parts == 0 else None
        count = asked["n_kv_heads"] if role is KEY else asked["n_heads"] if role is QUERY else None
        count = count or (rows // size if size and rows % size == 0 else 0)
        divides = count and rows % count == 0
        if not divides and any(asked.values()):
            raise ValueError(
                f"{path}.{name} of shape {tuple(weight.shape)} has {rows} output rows, which do not divide "
                "into heads with " + ", ".join(f"{key}={value}" for key, value in asked.items() if value)
            )
        if divides:
            what = {QUERY: "query head", KEY: "key head", FUSED: "head of query, key or value"}[role]
            blocks = (count,) if dim == 0 else (1, count)
            yield weight, blocks, f"{type(module).__name__}: {what}"


def _by_type(module: nn.Module, attribute: str, p: Tensor) -> tuple[Shape, str]:
    kind = type(module).__name__
    if _is_bias(attribute):
        return (max(p.numel(), 1),), f"{kind}: bias, every element"
    if p.ndim <= 1 or isinstance(module, NORMS):
        return (1,), f"{kind}: one for all"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return (p.shape[0],), f"{kind}: token"
    if isinstance(module, (nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)):
        return (p.shape[0],), f"{kind}: output row"
    if _is_conv1d(module):
        return (1, p.shape[1]), f"{kind}: output column"
    if isinstance(module, CONVOLUTIONS):
        return (p.shape[0],), f"{kind}: output channel"
    if isinstance(module, TRANSPOSED_CONVOLUTIONS):
        return (module.groups, p.shape[1], *[1] * (p.ndim - 2)), f"{kind}: output channel"
    if p.ndim == 3 and p.shape[0] == _number(module, EXPERTS):
        if getattr(module, "is_transposed", False):
            return (p.shape[0], 1, p.shape[2]), f"{kind}: output column of an expert"
        return (p.shape[0], p.shape[1], 1), f"{kind}: output row of an expert"
    return default(p.shape), f"shape alone, {kind} is not known: row"


def _matches(key: Any, name: str, p: Tensor, owners: Sequence[tuple[nn.Module, str]]) -> bool:
    if isinstance(key, type):
        return any(isinstance(module, key) and not _is_bias(attribute) for module, attribute in owners)
    if isinstance(key, str):
        return re.search(key, name) is not None
    return key is p


def _by_rule(rule: Rule, name: str, shape: Sequence[int]) -> Shape:
    words: dict[Any, Shape] = {
        "row": default(shape),
        "column": (1, *shape[1:2], *[1] * (len(shape) - 2)),
        "tensor": (1,),
        "element": (max(math.prod(shape), 1),),
    }
    if isinstance(rule, str) and rule not in words:
        raise ValueError(f"rule {rule!r} for {name}: use {', '.join(map(repr, words))}, or numbers of blocks")
    blocks = words[rule] if isinstance(rule, str) else (rule,) if isinstance(rule, int) else tuple(rule)
    if not fits(shape, blocks) or (rule == "column" and len(shape) < 2):
        raise ValueError(f"rule {rule!r} does not divide {name} of shape {tuple(shape)}")
    return blocks
