"""take_gradients=True: the gradient itself becomes the state `pre_grad`, instead of a copy of it."""

import torch
from torch import Tensor

from .dtensor import is_dtensor
from .rule import Batch


def takeable(p: Tensor, g: Tensor) -> Tensor:
    """A gradient that can be kept: of the parameter's dtype, and not in memory that others write to."""
    if not is_dtensor(g) and g._is_view():
        raise RuntimeError(
            f"take_gradients=True: the gradient of a parameter of shape {tuple(p.shape)} is a view of "
            "other memory, as in DDP's buckets, which would be overwritten: use "
            "gradient_as_bucket_view=False, or take_gradients=False"
        )
    shared = not is_dtensor(g) and g.untyped_storage().nbytes() > g.numel() * g.element_size()
    return torch.empty_like(p).copy_(g) if shared or g.dtype != p.dtype else g


def take(batch: Batch) -> None:
    """After a step, takes the gradients away from their parameters."""
    for p, state in batch.owners:
        assert p.grad is not None
        # detached, so that a graph of create_graph=True is not kept until the next step
        state["pre_grad"] = p.grad.detach() if p.grad.requires_grad else p.grad
        p.grad = None
    if batch.table is not None:
        batch.table.hold_gradients()
