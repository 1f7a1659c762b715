"""The global norm of the gradients, also where they are sharded."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
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
    """A tensor that all processes have alike, to compute with beside the DTensor `owner`."""
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
    """x with the shards of the DTensor `owner`, which operations beside copies may have gathered."""
    if not is_dtensor(owner):
        return x
    placed: Tensor = x.redistribute(owner.device_mesh, owner.placements)  # type: ignore[attr-defined]
    return placed


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all tensors together, without waiting for the device.

    Args:
        tensors: at least one, any shapes, dtypes and devices. The shards of DTensors are summed over their
            mesh, so every process gets the norm of the whole.

    Returns:
        A 0-dim tensor on the device of the first tensor. Squares are summed in float32, and in float64
        where one of the tensors is float64.
    """
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    device = tensors[0].device
    buckets: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for x in tensors:
        layout = (x.device_mesh, x.placements) if is_dtensor(x) else ()  # type: ignore[attr-defined]
        buckets[(x.device, *layout)].append(local(x))
    squares = []
    for (_, *spec), parts in buckets.items():
        parts = [x for x in parts if x.numel()]
        norms = (
            torch._foreach_norm(parts, 2, dtype=dtype)
            if parts
            else [torch.zeros((), dtype=dtype, device=device)]
        )
        square = torch.stack(list(norms)).square().sum()
        squares.append((reduce_over_mesh(square, *spec) if spec else square).to(device))
    return torch.stack(squares).sum().sqrt()


def reduce_over_mesh(x: Tensor, mesh: Any, placements: Sequence[Any], op: str = "sum") -> Tensor:
    """The sum ("max": the greatest) of per-process numbers over the mesh dimensions that shard a DTensor."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    summed = [Partial(op) if p.is_shard() else Replicate() for p in placements]
    return DTensor.from_local(x, mesh, summed, run_check=False).full_tensor()
