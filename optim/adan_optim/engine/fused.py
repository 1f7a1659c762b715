"""The fused path: a batch of tensors becomes a kernel's table.

Most rules are one pass of a kernel over an element's own values. Other rules take factors for the rows and
columns of a tensor, which torch's operations compute before the pass, from sums of squares (sums.py); some
have a first pass that sums numbers over blocks of 256 elements (`block_sums`), or sum them in their only
pass, for what comes after the step. On the CPU, kernels make the factors of blocks of elements themselves
(csrc/blocks.h), while the gradient is in a cache.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import caution, cuda, native
from .rule import Batch, UpdateRule
from .storage import BLOCK


def make_tables(optimizer: UpdateRule, batch: Batch) -> None:
    """Make the table of a batch, and the factors and block sums of a rule that has them."""
    on_cuda = batch.params[0].is_cuda
    make = cuda.CudaTable if on_cuda else native.CpuTable
    kinds = native.kinds(batch.params[0], batch.storage)
    tensors = (kinds, batch.params, batch.grads, batch.states)
    others = (*batch.spec.full, *(name for name, _ in batch.spec.small))
    rules = optimizer.fused_rules if on_cuda else optimizer.cpu_rules
    *first, rule = optimizer.card.cautious_rules if batch.group["caution"] else rules(batch.spec)
    if rule.factors:
        batch.factors = optimizer.make_factors(batch)
    sums: Sequence[Tensor] = ()
    if count := (*first, rule)[0].sums:
        batch.block_counts = [max(-(-p.numel() // BLOCK), 1) for p in batch.params]
        batch.block_sums = batch.params[0].new_zeros((sum(batch.block_counts), count), dtype=batch.work)
        sums = torch.split(batch.block_sums, batch.block_counts)
    if first:
        batch.first = make(first[0], *tensors, (), sums, others)
        sums = ()
    batch.table = make(rule, *tensors, batch.factors, sums, others)


def stays_on_device(batch: Batch) -> bool:
    """Return whether a step needs nothing from the host, not even the values of lr and found_inf tensors.

    A step with factors does: torch's operations compute them, which found_inf on the device cannot skip.
    """
    return isinstance(batch.table, cuda.CudaTable) and not batch.factors


def step(optimizer: UpdateRule, batch: Batch, factor: float, scale: Tensor | None, on_device: bool) -> None:
    """Make a step on a batch; the gradients are multiplied by factor and scale, which has one element.

    If the whole step stays on the device, so do a learning rate that is a tensor there and its like.
    """
    assert batch.table is not None
    lr = _numbers_on_device(optimizer, batch) if on_device else None
    known = batch.group if lr is None else {**batch.group, **dict.fromkeys(optimizer.device_numbers, 0.0)}
    hyper = optimizer.fused_hyper(known)
    if batch.first is not None:
        batch.first.step(hyper, factor, scale)
    if batch.group["caution"]:
        set_factors(batch, caution.shares_to_factors(batch))
    elif batch.factors and not batch.table.makes_factors:
        grads = [p.grad for p in batch.params] if not batch.grads else batch.grads
        by = factor if scale is None else factor * scale
        optimizer.fill_factors(batch, grads, by)  # type: ignore[arg-type]
    batch.table.step(hyper, factor, scale, lr=lr, found_inf=getattr(optimizer, "found_inf", None))


def _numbers_on_device(optimizer: UpdateRule, batch: Batch) -> Tensor | None:
    """The values of `device_numbers` [count], or the only one, if one of them is a tensor on a GPU."""
    values = [batch.group[name] for name in optimizer.device_numbers]
    if not any(isinstance(x, Tensor) and x.is_cuda for x in values):
        return None
    if len(values) == 1:
        return values[0]  # type: ignore[no-any-return]
    device, dtype = batch.params[0].device, torch.float64
    made = [
        x.reshape(()).to(device, dtype, non_blocking=True)
        if isinstance(x, Tensor)
        else torch.full((), x, device=device, dtype=dtype)
        for x in values
    ]
    return torch.stack(made)


# ---- for rules with factors or two passes


def exact_params(batch: Batch) -> list[Tensor]:
    """Return the parameters, of any shapes, with their rests where they have any."""
    if batch.storage.rest is None:
        return batch.params
    return batch.storage.load_params(batch.params, batch.states)


def set_factors(batch: Batch, values: Tensor) -> None:
    """Set the single factor of each of a batch's parameters to values [parameters]."""
    batch.constants["factors"].copy_(values)
