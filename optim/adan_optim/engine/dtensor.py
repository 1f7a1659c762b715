"""DTensors: tensors that are sharded or replicated over a device mesh (FSDP2, tensor parallelism).

Tensors may have any shape. An `owner` is a parameter, DTensor or not, and x has its shape unless noted.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def tensor_module(name: str = "") -> Any:
    """Return torch.distributed.tensor, or the module `name` in it; torch 2.4 has them elsewhere."""
    public = importlib.import_module("torch.distributed.tensor")
    home = "torch.distributed.tensor" if hasattr(public, "DTensor") else "torch.distributed._tensor"
    return importlib.import_module(home + name)


def is_dtensor(x: Any) -> bool:
    """Return whether x, anything, is a DTensor."""
    return hasattr(x, "_spec") and hasattr(x, "to_local")


def local(x: Tensor) -> Tensor:
    """Return the part of x that this process holds; x itself, of any shape, unless it is a DTensor."""
    # to_local() of a parameter makes a new view at every call, and a plan knows its tensors by identity
    return x._local_tensor if is_dtensor(x) else x  # type: ignore[attr-defined]


class Sharded:
    """A parameter that is a DTensor and its states, for a fast check that their local tensors stay."""

    def __init__(self, p: Tensor, state: Mapping[str, Any]) -> None:
        self._p, self._state = p, state
        self._local, self._held = local(p), list(state.items())
        self._parts = [local(x) if isinstance(x, Tensor) else x for x in state.values()]

    def unchanged(self) -> bool:
        """Return whether the plan that was made of them still holds."""
        return (
            local(self._p) is self._local
            and len(self._state) == len(self._held)
            and all(
                (part is x or local(x) is part) and self._state.get(name) is x
                for (name, x), part in zip(self._held, self._parts, strict=True)
            )
        )

    def gradient(self) -> Tensor | None:
        """Return the local tensor of the gradient, of p's local shape; None unless it is sharded like p."""
        g: Any = self._p.grad
        if g is None or not is_dtensor(g) or not alike(self._p, g):
            return None
        return local(g)


def alike(x: Any, y: Any) -> bool:
    """Return whether two DTensors, of any shapes, are sharded alike."""
    return x._spec is y._spec or (x.placements == y.placements and x.device_mesh == y.device_mesh)


def as_part_of(owner: Tensor, x: Tensor) -> Tensor:
    """Return a DTensor placed like `owner`, with x, of the shape of owner's shard, as this process's part."""
    mesh, placements = owner.device_mesh, owner.placements  # type: ignore[attr-defined]
    shape, make = dict(shape=owner.shape, stride=owner.stride()), tensor_module().DTensor.from_local
    return make(x, mesh, placements, run_check=False, **shape)  # type: ignore[no-any-return]


def as_copy_for(owner: Tensor, x: Tensor) -> Tensor:
    """Return x, any shape and the same in all processes, as a replicated DTensor on the mesh of `owner`."""
    tensor, mesh = tensor_module(), owner.device_mesh  # type: ignore[attr-defined]
    copies = [tensor.Replicate()] * mesh.ndim
    return tensor.DTensor.from_local(x, mesh, copies, run_check=False)  # type: ignore[no-any-return]


def with_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x, any shape, DTensor or not, with its bits read as another dtype of the same size: a view."""
    return as_part_of(x, local(x).view(dtype)) if is_dtensor(x) else x.view(dtype)


def whole(x: Tensor) -> Tensor:
    """Return all of a DTensor of any shape, gathered from its processes; x itself unless it is one."""
    return x.full_tensor() if is_dtensor(x) else x  # type: ignore[attr-defined]


def share_of(owner: Tensor, x: Tensor) -> Tensor:
    """Return x, the same in all processes, sharded like the DTensor `owner` of its shape; else x itself."""
    if not is_dtensor(owner):
        return x
    copies: Any = as_copy_for(owner, x)
    return copies.redistribute(placements=owner.placements)  # type: ignore[attr-defined, no-any-return]


def placing(x: Any) -> tuple[Any, ...]:
    """Return the mesh and the placements of a DTensor of any shape; () for other tensors."""
    return (x.device_mesh, tuple(x.placements)) if is_dtensor(x) else ()


def over_processes(owner: Tensor, parts: Sequence[Tensor], work: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Apply `work` to whole tensors, each process to a share of them; return the parts of the results.

    Args:
        owner: one of the parameters, DTensor or not; all others are of its shape and sharded like it.
        parts: what this process holds of the tensors, or the tensors.
        work: maps a stack of whole tensors [count, *shape] to one of the same shape.
    """
    stack = torch.stack(list(parts))
    if not is_dtensor(owner):
        return list(work(stack).unbind())
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh, places = placing(owner)
    if not all(
        type(place) in (Shard, Replicate) for place in places
    ):  # FSDP2 of tensor parallelism interleaves
        gathered = torch.stack([whole(as_part_of(owner, part)) for part in parts])
        return [local(share_of(owner, x)) for x in work(gathered)]
    shape = torch.Size((len(parts), *owner.shape))
    stride = torch.empty(shape, device="meta").stride()

    def exchanged(x: Tensor, before: Sequence[Any], after: Sequence[Any]) -> Tensor:
        given: Any = DTensor.from_local(x, mesh, before, run_check=False, shape=shape, stride=stride)
        return local(given.redistribute(placements=after))

    by_part = [Shard(place.dim + 1) if place.is_shard() else place for place in places]
    by_tensor = [Shard(0)] * mesh.ndim
    mine = exchanged(stack, by_part, by_tensor)
    return list(exchanged(work(mine), by_tensor, by_part).unbind())


def placed_like(owner: Tensor, x: Tensor) -> Tensor:
    """Return x, which operations with replicated tensors may have gathered, sharded like `owner` again.

    Both have one shape, and are DTensors, or plain tensors that stay as they are.
    """
    if not is_dtensor(owner):
        return x
    placed: Tensor = x.redistribute(owner.device_mesh, owner.placements)  # type: ignore[attr-defined]
    return placed


def reduce_over_mesh(x: Tensor, mesh: Any, placements: Sequence[Any], op: str = "sum") -> Tensor:
    """Reduce x, any shape, by "sum" or "max" over the mesh dimensions that shard a DTensor; same shape."""
    tensor = tensor_module()
    summed = [tensor.Partial(op) if p.is_shard() else tensor.Replicate() for p in placements]
    return tensor.DTensor.from_local(x, mesh, summed, run_check=False).full_tensor()  # type: ignore[no-any-return]
