"""The fused path: a batch of tensors becomes a kernel's table.

Most rules are one pass of a kernel over an element's own values. Other rules take factors for the rows and
columns of a tensor, which torch's operations compute before the pass, from sums of squares (sums.py); some
have a first pass that sums numbers over blocks of 256 elements (`block_sums`).
"""

import torch
from torch import Tensor

from . import caution, cuda, native
from .rule import Batch, UpdateRule
from .storage import BLOCK


def make_tables(optimizer: UpdateRule, batch: Batch) -> None:
    """Make the table of a batch, and the factors and block sums of a rule that has them."""
    make = cuda.CudaTable if batch.params[0].is_cuda else native.CpuTable
    kinds = native.kinds(batch.params[0], batch.storage)
    tensors = (kinds, batch.params, batch.grads, batch.states)
    others = (*batch.spec.full, *(name for name, _ in batch.spec.small))
    is_cautious = batch.group["caution"]
    *first, rule = optimizer.card.cautious_rules if is_cautious else optimizer.fused_rules(batch.spec)
    if rule.factors:
        batch.factors = [optimizer.make_factors(p, batch.group) for p in batch.params]
    if first:
        work = torch.promote_types(batch.params[0].dtype, torch.float32)
        shapes = [(max(-(-p.numel() // BLOCK), 1), first[0].sums) for p in batch.params]
        batch.block_sums = [batch.params[0].new_zeros(shape, dtype=work) for shape in shapes]
        batch.first = make(first[0], *tensors, (), batch.block_sums, others)
    batch.table = make(rule, *tensors, batch.factors, (), others)


def stays_on_device(batch: Batch) -> bool:
    """Return whether a step needs nothing from the host, not even the values of lr and found_inf tensors.

    A step with factors does: torch's operations compute them, which found_inf on the device cannot skip.
    """
    return isinstance(batch.table, cuda.CudaTable) and not batch.factors


def step(optimizer: UpdateRule, batch: Batch, factor: float, scale: Tensor | None, on_device: bool) -> None:
    """Make a step on a batch; the gradients are multiplied by factor and scale, which has one element.

    If the whole step stays on the device, so does a learning rate that is a tensor there.
    """
    assert batch.table is not None
    lr = batch.group["lr"]
    lr = lr if on_device and isinstance(lr, Tensor) and lr.is_cuda else None
    hyper = optimizer.fused_hyper(batch.group if lr is None else {**batch.group, "lr": 0.0})
    if batch.first is not None:
        batch.first.step(hyper, factor, scale)
    if batch.group["caution"]:
        set_factors(batch, caution.shares_to_factors(batch))
    elif batch.factors:
        grads = [p.grad for p in batch.params] if not batch.grads else batch.grads
        by = factor if scale is None else factor * scale
        optimizer.fill_factors(batch, grads, by)  # type: ignore[arg-type]
    batch.table.step(hyper, factor, scale, lr=lr, found_inf=getattr(optimizer, "found_inf", None))


# ---- for rules with factors or two passes


def exact_params(batch: Batch) -> list[Tensor]:
    """Return the parameters, of any shapes, with their rests where they have any."""
    if batch.storage.rest is None:
        return batch.params
    return batch.storage.load_params(batch.params, batch.states)


def set_factors(batch: Batch, values: Tensor) -> None:
    """Set the single factor of each of a batch's parameters to values [parameters]."""
    rows = [factors.rows for factors in batch.factors if factors.rows is not None]
    torch._foreach_copy_(rows, list(values.unsqueeze(1).unbind()))
