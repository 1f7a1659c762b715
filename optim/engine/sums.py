"""Sums of squares over rows, columns and tensors: what norms, block means and factored moments are made of.

On the CPU they are kernels of ours (csrc/sums.h), which read each number once; elsewhere, and where there are
no kernels, they are torch's.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from . import native
from .layout import is_dense


def row_sums(
    x: Sequence[Tensor], lengths: Sequence[int], weights: Sequence[Tensor | None] | None = None
) -> list[Tensor]:
    """The sums of the squares of each run of `length` elements, in the order of memory.

    Args:
        x: dense tensors of one dtype and device.
        lengths: for each a divisor of its number of elements; 0 for all of it.
        weights: for each [length] factors on the squares, in the dtype of the arithmetic, or None.

    Returns:
        For each tensor [elements / length] numbers, in float32, or float64 for float64. One where length is
        0, also for a tensor without elements.
    """
    work = torch.promote_types(x[0].dtype, torch.float32)
    spans = [length or max(t.numel(), 1) for t, length in zip(x, lengths, strict=True)]
    counts = [1 if not length else t.numel() // length for t, length in zip(x, lengths, strict=True)]
    sums = _zeros(counts, work, x[0].device)
    library, _ = native.load()
    if library is not None and x[0].device.type == "cpu":
        _call(library.kernels.cpu_square_sums, x, spans, sums, weights or [None] * len(x))
        return sums
    for i, t in enumerate(x):
        if t.numel():
            rows = _flat(t).view(-1, spans[i])
            weight = weights[i] if weights else None
            if weight is None:
                sums[i].copy_(torch.linalg.vector_norm(rows, dim=1, dtype=work).square_())
            else:
                sums[i].copy_(rows.to(work).square() @ weight)
    return sums


def column_sums(x: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
    """The sums of the squares of the elements with the same place in their runs: [length] for each tensor."""
    work = torch.promote_types(x[0].dtype, torch.float32)
    sums = _zeros(lengths, work, x[0].device)
    library, _ = native.load()
    if library is not None and x[0].device.type == "cpu":
        _call(library.kernels.cpu_column_square_sums, x, lengths, sums)
        return sums
    for t, length, to in zip(x, lengths, sums, strict=True):
        if t.numel():
            rows = _flat(t).view(-1, length)
            to.copy_(torch.linalg.vector_norm(rows, dim=0, dtype=work).square_())
    return sums


def _zeros(counts: Sequence[int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    return list(torch.split(torch.zeros(sum(counts), dtype=dtype, device=device), list(counts)))


def _flat(x: Tensor) -> Tensor:
    return x.as_strided((x.numel(),), (1,), x.storage_offset())


def _call(
    function: object,
    x: Sequence[Tensor],
    lengths: Sequence[int],
    sums: Sequence[Tensor],
    weights: Sequence[Tensor | None] | None = None,
) -> None:
    if not all(map(is_dense, x)):
        raise ValueError("sums of squares are of dense tensors only")
    count = len(x)

    def addresses(tensors: Sequence[Tensor | None]) -> object:
        return (ctypes.c_void_p * count)(*(None if t is None else t.data_ptr() for t in tensors))

    def numbers(values: Sequence[int]) -> object:
        return (ctypes.c_int64 * count)(*values)

    tables = [addresses(x), numbers([t.numel() for t in x]), numbers(lengths)]
    tables += [addresses(weights)] if weights is not None else []
    function(native.PARAMETER[x[0].dtype], count, *tables, addresses(sums), torch.get_num_threads())  # type: ignore[operator]
