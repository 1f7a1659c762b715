"""Tensors in files, including those that are not dense, not whole, or without values.

These are described by their shapes and dtypes, but refused where values are needed.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from repro.errors import UserError

GATHER = (
    "gather them before saving: torch.distributed.checkpoint.state_dict.get_state_dict(model, optimizer, "
    "options=StateDictOptions(full_state_dict=True))"
)
CURES = {  # by how `oddity` begins
    "DTensor": GATHER,
    "sparse": "save to_dense() of them",
    "nested": "save unbind() of them",
    "quantized": "save dequantize() of them",
    "meta": "save the model after its values are loaded",
}


def detached(x: Tensor) -> Tensor:
    """Return a tensor (any shape) without its history; a DTensor that is whole here becomes a plain one."""
    if x.is_nested:  # detaching it warns that the class is a prototype
        return x
    x = x.detach()
    if isinstance(x, DTensor) and not any(placement.is_partial() for placement in x.placements):
        local = x.to_local()
        return local if local.shape == x.shape else x
    return x


def oddity(x: Tensor) -> str | None:
    """Return the kind of a tensor (any shape) if its values cannot be used directly, else None."""
    if isinstance(x, DTensor):
        return f"DTensor, of which one of {x.device_mesh.size()} processes has its part here"
    if x.is_nested:
        return "nested tensor"
    if x.layout != torch.strided:
        return f"sparse tensor ({str(x.layout).removeprefix('torch.')})"
    if x.is_quantized:
        return f"quantized tensor ({str(x.dtype).removeprefix('torch.')})"
    return "meta tensor, which has no values" if x.is_meta else None


def oddities(weights: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each kind of tensor whose values cannot be used, with the cure."""
    kinds: dict[str, list[str]] = {}
    for name, x in weights.items():
        if (kind := oddity(x)) is not None:
            kinds.setdefault(kind, []).append(name)
    lines = []
    for kind, names in kinds.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        cure = next(cure for begin, cure in CURES.items() if kind.startswith(begin))
        lines.append(f"{names[0]}{more}: {kind}; {cure}")
    return lines


def require_values(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError if the values of a tensor cannot be used."""
    for line in oddities(weights):
        raise UserError(f"{path} cannot be used: {line}")


def identity(x: Tensor) -> tuple[Any, ...]:
    """Return a key that two tensors share if and only if they are the same tensor."""
    if isinstance(x, DTensor):
        return identity(x.to_local())
    if x.is_nested or x.layout != torch.strided:
        return (id(x),)
    storage = x.untyped_storage()
    address = storage.data_ptr() or storage._cdata  # 0 for meta tensors
    return address, x.storage_offset(), x.shape, x.stride(), x.dtype


def shape(x: Tensor) -> tuple[int, ...]:
    """Return the shape, or [elements] for a nested tensor, which has none."""
    return (x.numel(),) if x.is_nested else tuple(x.shape)


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of all elements of some tensors (any shapes)."""
    return sum(x.numel() * x.element_size() for x in tensors)


def number(x: Tensor) -> Any:
    """Return the value of a tensor with one element; for others a text with the shape."""
    single = x.numel() == 1 and oddity(x) is None
    return x.item() if single else f"tensor of shape {shape(x)}"
