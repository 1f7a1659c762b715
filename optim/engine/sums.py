"""Sums of squares over rows, columns and tensors, for norms, block means and factored moments.

On the CPU our own kernels (csrc/sums.h) compute them, reading each number once. Elsewhere, and without the
kernels, torch does, for all tensors in one operation where it has one: on a GPU each costs a launch.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import native
from .layout import is_dense
from .storage import flat


def row_sums(
    x: Sequence[Tensor], lengths: Sequence[int], weights: Sequence[Tensor | None] | None = None
) -> list[Tensor]:
    """Return the sums of squares of each run of `length` elements, in memory order.

    Args:
        x: dense tensors of any shape, of one dtype and device.
        lengths: for each tensor, a divisor of its number of elements; 0 means all of them.
        weights: for each tensor, [length] factors on the squares in the dtype of the arithmetic, or None.

    Returns:
        For each tensor [elements / length] sums, in float32, or in float64 for float64; [1] where length is
        0, even for a tensor without elements.

    Raises:
        ValueError: for a tensor that is not dense, on the CPU.
    """
    work = torch.promote_types(x[0].dtype, torch.float32)
    spans = [length or max(t.numel(), 1) for t, length in zip(x, lengths, strict=True)]
    counts = [1 if not length else t.numel() // length for t, length in zip(x, lengths, strict=True)]
    sums = _zeros(counts, work, x[0].device)
    library, _ = native.load()
    if library is not None and x[0].device.type == "cpu":
        _call(library.kernels.cpu_square_sums, x, spans, sums, weights or [None] * len(x))
        return sums
    given = weights or [None] * len(x)
    filled = [i for i, t in enumerate(x) if t.numel()]
    whole = [i for i in filled if counts[i] == 1 and given[i] is None]
    if whole:
        norms = torch._foreach_norm([flat(x[i]) for i in whole], dtype=work)
        torch._foreach_copy_([sums[i][0] for i in whole], norms)
    for i in filled:
        rows = flat(x[i]).view(-1, spans[i])
        if (weight := given[i]) is not None:
            sums[i].copy_(rows.to(work).square() @ weight)
        elif counts[i] != 1:
            torch.linalg.vector_norm(rows, dim=1, dtype=work, out=sums[i])
    _square([sums[i] for i in filled if given[i] is None])
    return sums


def column_sums(x: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
    """Return the sums of squares over all runs of `length` elements: [length] for each tensor.

    Arguments and errors are those of `row_sums`, but no length is 0.
    """
    work = torch.promote_types(x[0].dtype, torch.float32)
    sums = _zeros(lengths, work, x[0].device)
    library, _ = native.load()
    if library is not None and x[0].device.type == "cpu":
        _call(library.kernels.cpu_column_square_sums, x, lengths, sums)
        return sums
    for t, length, to in zip(x, lengths, sums, strict=True):
        if t.numel():
            torch.linalg.vector_norm(flat(t).view(-1, length), dim=0, dtype=work, out=to)
    _square(sums)
    return sums


def block_totals(block_sums: Sequence[Tensor]) -> list[Tensor]:
    """Return the totals of the numbers that kernels added up in blocks.

    Args:
        block_sums: for each tensor [blocks, sums], not negative; at least one block.

    Returns:
        For each of the sums [tensors], float64.
    """
    if block_sums[0].device.type == "cpu":
        return list(torch.stack([x.sum(0, dtype=torch.float64) for x in block_sums]).unbind(1))
    counts = [len(x) for x in block_sums]
    return [totals(column, counts) for column in torch.cat(list(block_sums)).t().contiguous()]


def totals(x: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the sum of the first counts[0] numbers of x [n], which are not negative, of the next, and so on.

    Returns:
        [len(counts)], float64.
    """
    parts = torch.split(x, list(counts))
    filled = [i for i, part in enumerate(parts) if len(part)]
    if not filled:
        return x.new_zeros(len(parts), dtype=torch.float64)
    found = torch.stack(torch._foreach_norm([parts[i] for i in filled], 1, dtype=torch.float64))
    if len(filled) == len(parts):
        return found
    places = torch.tensor(filled, device=x.device)
    return found.new_zeros(len(parts)).index_copy_(0, places, found)


def _square(x: list[Tensor]) -> None:
    if x:
        torch._foreach_mul_(x, x)


def _zeros(counts: Sequence[int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    return list(torch.split(torch.zeros(sum(counts), dtype=dtype, device=device), list(counts)))


def _call(
    function: Callable[..., Any],
    x: Sequence[Tensor],
    lengths: Sequence[int],
    sums: Sequence[Tensor],
    weights: Sequence[Tensor | None] | None = None,
) -> None:
    if not all(map(is_dense, x)):
        raise ValueError("sums of squares need dense tensors")
    addresses, numbers = ctypes.c_void_p * len(x), ctypes.c_int64 * len(x)
    tables = [addresses(*(t.data_ptr() for t in x)), numbers(*(t.numel() for t in x)), numbers(*lengths)]
    if weights is not None:
        tables.append(addresses(*(None if t is None else t.data_ptr() for t in weights)))
    to = addresses(*(t.data_ptr() for t in sums))
    function(native.PARAMETER[x[0].dtype], len(x), *tables, to, torch.get_num_threads())
