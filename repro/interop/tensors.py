"""Tensors as files have them: also those that are not dense, not whole, or have no values.

Such tensors are described by their shapes and types. Where their values are needed, they are refused.
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
    """Return a tensor without its history; of a DTensor that one process has all of the plain tensor."""
    if x.is_nested:  # to detach it warns that the class is a prototype
        return x
    x = x.detach()
    if isinstance(x, DTensor) and not any(placement.is_partial() for placement in x.placements):
        local = x.to_local()
        return local if local.shape == x.shape else x
    return x


def oddity(x: Tensor) -> str | None:
    """Return what kind of tensor this is if its values cannot be used as they are, else None."""
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
    """Return a line for each kind of tensors among these whose values cannot be used, with the cure."""
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
    """Raise UserError if the values of one of these cannot be used."""
    for line in oddities(weights):
        raise UserError(f"{path} cannot be used: {line}")


def identity(x: Tensor) -> tuple[Any, ...]:
    """What two tensors have in common if and only if they are one."""
    if isinstance(x, DTensor):
        return identity(x.to_local())
    if x.is_nested or x.layout != torch.strided:
        return (id(x),)
    storage = x.untyped_storage()
    address = storage.data_ptr() or storage._cdata  # that of meta tensors is 0
    return address, x.storage_offset(), x.shape, x.stride(), x.dtype


def shape(x: Tensor) -> tuple[int, ...]:
    """Return the shape; of a nested tensor, which has none, the number of its elements."""
    return (x.numel(),) if x.is_nested else tuple(x.shape)


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the tensors, of all their elements."""
    return sum(x.numel() * x.element_size() for x in tensors)


def number(x: Tensor) -> Any:
    """Return the value of a tensor that is one number, of another its shape in words."""
    single = x.numel() == 1 and oddity(x) is None
    return x.item() if single else f"tensor of shape {shape(x)}"
