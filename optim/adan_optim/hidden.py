"""Which parameters are hidden matrices, those that Muon is for, from the structure of a model."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from .groups import _blocks
from .partitions import EXPERTS, _by, _matches, _number
from .text import aligned

Key = type | str | Tensor


class Entry(NamedTuple):
    """A parameter, whether it is a hidden matrix or a stack of them [..., rows, columns], and the reason."""

    param: Tensor
    is_hidden: bool
    is_stack: bool
    reason: str


class HiddenMatrices(dict[str, Entry]):
    """The entries of a model's trainable parameters by name; `str` makes a readable table of it."""

    def __str__(self) -> str:
        rows = [("parameter", "shape", "hidden matrix", "why")]
        for name, entry in self.items():
            answer = ("a stack" if entry.is_stack else "yes") if entry.is_hidden else "no"
            rows.append((name, _by(entry.param.shape), answer, entry.reason))
        hidden = sum(entry.param.numel() for entry in self.values() if entry.is_hidden)
        total = (
            f"{hidden} of {sum(entry.param.numel() for entry in self.values())} elements in hidden matrices"
        )
        return "\n".join([*aligned(rows), total])


def is_matrix(shape: Sequence[int], stacked: bool = False) -> bool:
    """Return whether a shape [first, ...], or with `stacked` [..., rows, columns], has two sides above 1."""
    if len(shape) < 2 or not math.prod(shape):
        return False
    sides = shape[-2:] if stacked else (shape[0], math.prod(shape[1:]))
    return min(sides) > 1


def hidden_matrices(model: nn.Module, *, rules: Mapping[Key, bool] | None = None) -> HiddenMatrices:
    """Return which of a model's trainable parameters are hidden matrices.

    The first of these that applies decides: a rule in `rules`; a parameter that has no two sides above 1 (a
    convolution's weight is the matrix [out, all others]) is a vector; the weight of an `nn.Embedding`, also
    where another layer shares it, is an embedding; the last layer with a matrix, unless it is a part of a
    repeated block, is the output layer. All others are hidden matrices; the weights of experts, [experts,
    rows, columns], are stacks of them.

    Args:
        model: any module.
        rules: maps a module type, a regular expression (searched in the name of the parameter) or a parameter
            to True for hidden matrices, False for others. The first match counts.

    Raises:
        ValueError: for a rule that matches nothing, or makes a matrix of a vector.

    Example:
        >>> print(hidden_matrices(nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))))
        parameter  shape  hidden matrix  why
        0.weight   3 x 4  yes            Linear
        1.weight   2 x 3  no             Linear: output layer
        12 of 18 elements in hidden matrices
    """
    owners: dict[Tensor, list[tuple[nn.Module, str]]] = {}
    last = ""
    for path, module in model.named_modules():
        for attribute, p in module.named_parameters(recurse=False):
            owners.setdefault(p, []).append((module, attribute))
            last = path if is_matrix(p.shape) else last
    inside = any(last.startswith(f"{block}.") for block, _ in _blocks(model, ""))
    output = None if inside else model.get_submodule(last)
    given, used, entries = dict(rules or {}), set(), HiddenMatrices()
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        is_hidden, is_stack, reason = _by_structure(p, [module for module, _ in owners[p]], output)
        for match, rule in given.items():
            if _matches(match, name, p, owners[p]):
                used.add(match)
                if rule and not is_matrix(p.shape):
                    raise ValueError(
                        f"rule {rule!r} for {name} of shape {tuple(p.shape)}, which is no matrix"
                    )
                is_hidden, reason = rule, f"rule: {rule}"
                break
        entries[name] = Entry(p, is_hidden, is_stack, reason)
    for match in given.keys() - used:
        what = f"a parameter of shape {tuple(match.shape)}" if isinstance(match, Tensor) else repr(match)
        raise ValueError(f"the rule for {what} matches no trainable parameter, or only after another rule")
    return entries


def _by_structure(
    p: Tensor, modules: Sequence[nn.Module], output: nn.Module | None
) -> tuple[bool, bool, str]:
    kind = type(modules[0]).__name__
    is_stack = p.ndim == 3 and any(p.shape[0] == _number(module, EXPERTS) for module in modules)
    if not is_matrix(p.shape, is_stack):
        return False, False, f"{kind}: vector"
    if any(isinstance(module, (nn.Embedding, nn.EmbeddingBag)) for module in modules):
        return False, False, f"{kind}: embedding"
    if any(module is output for module in modules):
        return False, False, f"{kind}: output layer"
    return True, is_stack, f"{kind}: experts" if is_stack else kind
