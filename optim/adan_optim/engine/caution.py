"""Caution: an element whose step has another sign than its gradient does not make it (arXiv 2411.16085).

The steps of the others are divided by their share of the tensor, 0.001 at least. Algorithm 1 of the paper,
with the share as timm has it: the mean of the mask. An element whose gradient is 0 does not agree.
"""

import torch
from torch import Tensor

from .rule import Batch, Group
from .storage import Tensors
from .sums import block_totals

LEAST_SHARE = 1e-3


def cautious(u: Tensor, g: Tensor, group: Group) -> Tensor:
    """Return u with caution, if the group has it.

    Args:
        u: the step of a tensor, of any shape; of a DTensor, a DTensor: the share is that of the whole tensor.
        g: its gradient, likewise.
        group: the parameter's.
    """
    if not group["caution"]:
        return u
    agrees = (u.sign() * g > 0).to(u.dtype)
    return u * (agrees / agrees.mean().clamp(min=LEAST_SHARE))


def cautious_many(u: Tensors, g: Tensors, group: Group) -> Tensors:
    """Do the same for lists with one tensor per parameter."""
    return [cautious(x, y, group) for x, y in zip(u, g, strict=True)] if group["caution"] else u


def shares_to_factors(batch: Batch) -> Tensor:
    """Return the factors of the second pass [parameters], from the first pass's counts; see `Agreement`."""
    assert batch.block_sums is not None
    (counts,) = block_totals(batch.block_sums, batch.block_counts)
    sizes = torch.tensor([max(p.numel(), 1) for p in batch.params], dtype=counts.dtype, device=counts.device)
    return (counts / sizes).clamp(min=LEAST_SHARE).reciprocal()
