"""The fused path: a batch of tensors as a table of a kernel.

Most rules are one pass of a kernel over an element's own values. Rules that need more get it as factors for
the rows and columns of a tensor, which operations of torch compute before the pass; some have a first pass
that adds up numbers in blocks (`block_sums`).
"""

import torch
from torch import Tensor

from . import cuda, native
from .rule import Batch, UpdateRule
from .storage import BLOCK


def make_tables(optimizer: UpdateRule, batch: Batch) -> None:
    """Makes the table of a batch, and what a rule with factors or two passes needs besides."""
    make = cuda.CudaTable if batch.params[0].is_cuda else native.CpuTable
    kinds = native.kinds(batch.params[0], batch.storage)
    tensors = (kinds, batch.params, batch.grads, batch.states)
    others = (*batch.spec.full, *(name for name, _ in batch.spec.small))
    *first, rule = optimizer.fused_rules(batch.spec)
    if rule.factors:
        batch.factors = [optimizer.make_factors(p, batch.group) for p in batch.params]
    if first:
        batch.block_sums = [_block_sums(p, first[0].sums) for p in batch.params]
        batch.first = make(first[0], *tensors, (), batch.block_sums, others)
    batch.table = make(rule, *tensors, batch.factors, (), others)


def stays_on_device(batch: Batch) -> bool:
    """Whether a step needs nothing from the host, with a tensor as learning rate and found_inf too.

    Factors are made by operations of torch, which no found_inf on the device could leave out.
    """
    return isinstance(batch.table, cuda.CudaTable) and not batch.factors


def step(
    optimizer: UpdateRule,
    batch: Batch,
    factor: float,
    scale: Tensor | None,
    on_device: bool,
) -> None:
    """Makes a step on a batch; factor times scale is the factor on the gradients.

    If the whole step stays on the device, so does a learning rate that is a tensor there.
    """
    assert batch.table is not None
    lr = batch.group["lr"]
    lr = lr if on_device and isinstance(lr, Tensor) and lr.is_cuda else None
    hyper = optimizer.fused_hyper(batch.group if lr is None else {**batch.group, "lr": 0.0})
    if batch.first is not None:
        batch.first.step(hyper, factor, scale)
    if batch.factors:
        grads = [p.grad for p in batch.params] if not batch.grads else batch.grads
        by = factor if scale is None else factor * scale
        optimizer.fill_factors(batch, grads, by)  # type: ignore[arg-type]
    batch.table.step(hyper, factor, scale, lr=lr, found_inf=getattr(optimizer, "found_inf", None))


# ---- for rules with factors or two passes


def exact_params(batch: Batch) -> list[Tensor]:
    """The parameters with the compensation of their rounding, where there is one."""
    if batch.storage.rounding != "kahan":
        return batch.params
    return batch.storage.load_params(batch.params, batch.states)


def one_factor(p: Tensor) -> native.Factors:
    """Memory for a single factor on all elements of a parameter."""
    work = torch.promote_types(p.dtype, torch.float32)
    return native.Factors(torch.empty(1, dtype=work, device=p.device), None, p.numel())


def set_factors(batch: Batch, values: Tensor) -> None:
    """Sets the single factors of a batch's parameters to the values [parameters]."""
    rows = [factors.rows for factors in batch.factors if factors.rows is not None]
    torch._foreach_copy_(rows, list(values.unsqueeze(1).unbind()))


def _block_sums(p: Tensor, sums: int) -> Tensor:
    """Memory for the numbers that a rule adds up in each block of a parameter."""
    work = torch.promote_types(p.dtype, torch.float32)
    return torch.zeros((-(-p.numel() // BLOCK), sums), dtype=work, device=p.device)
