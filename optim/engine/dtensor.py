"""DTensors: tensors that are sharded or replicated over a device mesh (FSDP2, tensor parallelism)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def is_dtensor(x: Tensor) -> bool:
    """Whether x is sharded or replicated over a device mesh (FSDP2, tensor parallelism)."""
    return hasattr(x, "_spec") and hasattr(x, "to_local")


def local(x: Tensor) -> Tensor:
    """The part of x that this process holds; x itself unless it is a DTensor."""
    return x.to_local() if is_dtensor(x) else x  # type: ignore[attr-defined]


def as_part_of(owner: Tensor, x: Tensor) -> Tensor:
    """A local tensor as this process's part of a DTensor like `owner`."""
    from torch.distributed.tensor import DTensor

    mesh, placements = owner.device_mesh, owner.placements  # type: ignore[attr-defined]
    return DTensor.from_local(x, mesh, placements, run_check=False, shape=owner.shape, stride=owner.stride())


def as_copy_for(owner: Tensor, x: Tensor) -> Tensor:
    """A tensor that all processes have alike, to compute with together with the DTensor `owner`."""
    from torch.distributed.tensor import DTensor, Replicate

    mesh = owner.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(x, mesh, [Replicate()] * mesh.ndim, run_check=False)


def whole(x: Tensor) -> Tensor:
    """All of a DTensor, gathered from the processes that share it; x itself unless it is one."""
    return x.full_tensor() if is_dtensor(x) else x  # type: ignore[attr-defined]


def share_of(owner: Tensor, x: Tensor) -> Tensor:
    """What of x, which all processes have alike, goes with a DTensor `owner`; x itself with other tensors."""
    if not is_dtensor(owner):
        return x
    copies: Any = as_copy_for(owner, x)
    return copies.redistribute(placements=owner.placements)  # type: ignore[attr-defined, no-any-return]


def placed_like(owner: Tensor, x: Tensor) -> Tensor:
    """x with the shards of the DTensor `owner`, which operations with copies may have gathered."""
    if not is_dtensor(owner):
        return x
    placed: Tensor = x.redistribute(owner.device_mesh, owner.placements)  # type: ignore[attr-defined]
    return placed


def reduce_over_mesh(x: Tensor, mesh: Any, placements: Sequence[Any], op: str = "sum") -> Tensor:
    """The sum ("max": the maximum) of per-process numbers over the mesh dimensions that shard a DTensor."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    summed = [Partial(op) if p.is_shard() else Replicate() for p in placements]
    return DTensor.from_local(x, mesh, summed, run_check=False).full_tensor()
