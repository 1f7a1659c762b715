"""The global norm of the gradients, sharded or not."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .dtensor import is_dtensor, local, reduce_over_mesh


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of all tensors together, without waiting for the device.

    Args:
        tensors: at least one, of any shapes, dtypes and devices. Shards of DTensors are summed over their
            mesh, so that every process gets the norm of the whole.

    Returns:
        A scalar tensor on the device of the first tensor. Squares are summed in float32, or in float64 if
        one of the tensors is float64.
    """
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    device = tensors[0].device
    buckets: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for x in tensors:
        layout = (x.device_mesh, x.placements) if is_dtensor(x) else ()  # type: ignore[attr-defined]
        buckets[(x.device, *layout)].append(local(x))
    squares = []
    for (place, *spec), parts in buckets.items():
        if parts := [x for x in parts if x.numel()]:
            square = torch.stack(list(torch._foreach_norm(parts, 2, dtype=dtype))).square().sum()
        else:
            square = torch.zeros((), dtype=dtype, device=place)
        squares.append((reduce_over_mesh(square, *spec) if spec else square).to(device))
    return torch.stack(squares).sum().sqrt()
