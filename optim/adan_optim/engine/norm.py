"""The global norm of the gradients, sharded or not."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import native
from .contract import why_not_plain
from .dtensor import is_dtensor, local, reduce_over_mesh
from .layout import is_dense
from .rule import Batch


def gradient_norm(batches: Sequence[Batch]) -> Tensor:
    """Return the L2 norm of the gradients of all batches, at least one, without waiting for the device.

    See `global_norm`. The tables of fused batches on the CPU know where their gradients are. The last batch
    is read first, so that the step, which begins with the first, finds some of it in the cache.
    """
    known, others = [], []
    for batch in reversed(batches):
        if isinstance(batch.table, native.CpuTable) and not batch.sharded:
            known.append(batch.table.square_sum())
        else:
            others += [p.grad for p, _ in batch.owners if p.grad is not None]
    return global_norm(others, known)


def global_norm(tensors: Sequence[Tensor], known: Sequence[float] = ()) -> Tensor:
    """Return the L2 norm of all tensors together, without waiting for the device.

    Args:
        tensors: of any shapes, dtypes and devices. Shards of DTensors are summed over their mesh, so that
            every process gets the norm of the whole.
        known: sums of the squares of further tensors, on the CPU.

    Returns:
        A scalar tensor on the device of the first tensor. The kernels for the CPU add up squares in float64,
        so that those of float32 numbers do not overflow; otherwise they are added up in float32, or in
        float64 if one of the tensors is float64.
    """
    if not tensors:
        return torch.tensor(math.sqrt(sum(known)), dtype=torch.float64, device="cpu")
    wide = any(x.dtype == torch.float64 for x in tensors)
    device = tensors[0].device
    buckets: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for x in tensors:
        where = (x.device, x.device_mesh, x.placements) if is_dtensor(x) else (x.device,)  # type: ignore[attr-defined]
        buckets[where].append(local(x))
    squares = [torch.tensor(sum(known), dtype=torch.float64, device="cpu")] if known else []
    for (place, *spec), parts in buckets.items():
        square = _square_sum(parts, place, wide)
        squares.append(reduce_over_mesh(square, *spec) if spec else square)
    dtype = _dtype_on(device, wide)
    return torch.stack([x.to(device, dtype) for x in squares]).sum().sqrt()


def over_processes(norm: Tensor | None, device: torch.device, group: Any) -> Tensor:
    """Return the norm over what all processes of a group give: a norm, or None for nothing; see `Optimizer`.

    A scalar tensor in float64, on the device that this process gives.
    """
    square = torch.zeros((), dtype=torch.float64, device=device) if norm is None else norm.double().square()
    dist.all_reduce(square, group=None if group == "world" else group)
    return square.sqrt()


def _dtype_on(device: torch.device, wide: bool) -> torch.dtype:
    """The dtype of sums on a device, also in a process whose shards are all empty."""
    return torch.float64 if wide or device.type == "cpu" else torch.float32


def _square_sum(tensors: Sequence[Tensor], device: torch.device, wide: bool) -> Tensor:
    """The sum of the squares of plain tensors of any shapes and dtypes on one device, a scalar tensor."""
    kinds: dict[torch.dtype | None, list[Tensor]] = defaultdict(list)
    for x in tensors:
        if x.numel():
            kinds[x.dtype if _has_kernel(x) else None].append(x)
    others, dtype = kinds.pop(None, []), _dtype_on(device, wide)
    squares = [torch.tensor(native.square_sum(x), dtype=dtype, device="cpu") for x in kinds.values()]
    if others:
        norms = torch._foreach_norm(others, 2, dtype=torch.float64 if wide else torch.float32)
        squares.append(torch.stack(list(norms)).square().sum().to(dtype))
    return torch.stack(squares).sum() if squares else torch.zeros((), dtype=dtype, device=device)


def _has_kernel(x: Tensor) -> bool:
    """Whether `native.square_sum` can read a tensor of any shape."""
    is_read = x.device.type == "cpu" and x.dtype in native.PARAMETER and native.load()[0] is not None
    return is_read and is_dense(x) and not why_not_plain(x)
