"""take_gradients=True: the gradient itself becomes the state `pre_grad`, instead of a copy of it."""

import torch
from torch import Tensor

from .dtensor import is_dtensor
from .rule import Batch


def takeable(p: Tensor, g: Tensor) -> Tensor:
    """Return a gradient to keep, of p's shape and dtype: g, or a copy if its memory holds anything else.

    Raises:
        RuntimeError: for a view of memory that will be overwritten, such as DDP's buckets.
    """
    if not is_dtensor(g) and g._is_view():
        raise RuntimeError(
            f"take_gradients=True: the gradient of a parameter of shape {tuple(p.shape)} is a view of "
            "other memory, as in DDP's buckets, which would be overwritten: use "
            "gradient_as_bucket_view=False, or take_gradients=False"
        )
    shared = not is_dtensor(g) and g.untyped_storage().nbytes() > g.numel() * g.element_size()
    return torch.empty_like(p).copy_(g) if shared or g.dtype != p.dtype else g


def take(batch: Batch) -> None:
    """Take the gradients, of any shapes, away from their parameters after a step."""
    for p, state in batch.owners:
        assert p.grad is not None
        # detached, so that a graph from create_graph=True does not live until the next step
        state["pre_grad"] = p.grad.detach() if p.grad.requires_grad else p.grad
        p.grad = None
    if batch.table is not None:
        batch.table.hold_gradients()
