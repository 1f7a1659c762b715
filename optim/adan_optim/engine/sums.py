"""Sums of squares over rows, columns and tensors, for norms, block means and factored moments.

Kernels compute them on the CPU (csrc/sums.h) and under CUDA (csrc/sums.cuh), with the same bits.
"""

import ctypes
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from . import native
from .cuda_sums import CudaSums
from .layout import is_dense


class Sums(Protocol):
    """Sums of squares of tensors of one dtype, as rows of `length` elements in memory order.

    Results are in the dtype of the arithmetic: float32, or float64 for float64 tensors.
    """

    def rows(self, x: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
        """Return the sums over each row: [rows of all tensors], in their order.

        Args:
            x: dense tensors, of any shapes with rows * length elements.
            weights: factors on the squares, [lengths of all tensors]: for each tensor one for each column.

        Raises:
            ValueError: for a tensor that is not dense, on the CPU.
        """
        ...

    def rows_and_columns(self, x: Sequence[Tensor]) -> Tensor:
        """Return the sums over each row and over each column: [rows of all tensors, then columns of all]."""
        ...


def sums_of(p: Tensor, dtype: torch.dtype, shapes: Sequence[tuple[int, int]]) -> Sums:
    """Return what adds up tensors of a dtype, on the device of p, that are [rows, length] elements."""
    return CudaSums(dtype, shapes, p.device.index or 0) if p.is_cuda else CpuSums(dtype, shapes)


class CpuSums:
    """`Sums` of CPU tensors."""

    def __init__(self, dtype: torch.dtype, shapes: Sequence[tuple[int, int]]) -> None:
        library, reason = native.load()
        if library is None:
            raise RuntimeError(reason)
        self._kernels, self._dtype = library.kernels, dtype
        self._work = torch.promote_types(dtype, torch.float32)
        self._rows, self._lengths = ([shape[i] for shape in shapes] for i in range(2))
        numbers = ctypes.c_int64 * len(shapes)
        self._sizes = numbers(*(rows * length for rows, length in shapes)), numbers(*self._lengths)

    def rows(self, x: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
        sums = torch.zeros(sum(self._rows), dtype=self._work, device="cpu")
        to = self._addresses(sums, self._rows)
        given = None if weights is None else self._addresses(weights, self._lengths)
        self._call(self._kernels.cpu_square_sums, x, given, to)
        return sums

    def rows_and_columns(self, x: Sequence[Tensor]) -> Tensor:
        count = sum(self._rows)
        sums = torch.zeros(count + sum(self._lengths), dtype=self._work, device="cpu")
        self._call(self._kernels.cpu_square_sums, x, None, self._addresses(sums, self._rows))
        to = self._addresses(sums[count:], self._lengths)
        self._call(self._kernels.cpu_column_square_sums, x, to)
        return sums

    def _addresses(self, x: Tensor, counts: Sequence[int]) -> Any:
        """Where the parts of x of these lengths begin."""
        begins = itertools.accumulate(counts[:-1], initial=0)
        return (ctypes.c_void_p * len(counts))(*(x.data_ptr() + x.itemsize * begin for begin in begins))

    def _call(self, function: Callable[..., Any], x: Sequence[Tensor], *more: Any) -> None:
        if not all(map(is_dense, x)):
            raise ValueError("sums of squares need dense tensors")
        addresses = (ctypes.c_void_p * len(x))(*(t.data_ptr() for t in x))
        numbers = native.PARAMETER[self._dtype], len(x)
        function(*numbers, addresses, *self._sizes, *more, torch.get_num_threads())


def block_totals(block_sums: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Return the totals of the numbers that kernels added up in blocks.

    Args:
        block_sums: [blocks of all tensors, sums], not negative.
        counts: how many blocks each tensor has; at least one.

    Returns:
        For each of the sums [tensors], float64.
    """
    if block_sums.device.type == "cpu":
        lengths = torch.tensor(counts, device="cpu")
        found = torch.segment_reduce(block_sums.double(), "sum", lengths=lengths, axis=0, unsafe=True)
        return list(found.unbind(1))
    return [totals(column, counts) for column in block_sums.t().contiguous()]


def signed_totals(block_sums: Tensor) -> Tensor:
    """Return the totals over all blocks of all tensors: of [blocks, sums], [sums] in float64.

    On the CPU they have the same bits for any number of threads.
    """
    if block_sums.device.type == "cpu":
        lengths = torch.tensor([len(block_sums)], device="cpu")
        return torch.segment_reduce(block_sums.double(), "sum", lengths=lengths, axis=0, unsafe=True)[0]
    return block_sums.sum(0, dtype=torch.float64)


def totals(x: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the sum of the first counts[0] numbers of x [n], which are not negative, of the next, and so on.

    Returns:
        [len(counts)], float64.
    """
    parts = torch.split(x, list(counts))
    filled = [part for part in parts if len(part)]  # torch has no norm of an empty tensor
    found = torch._foreach_norm(filled, 1, dtype=torch.float64) if filled else ()
    if len(filled) < len(parts):
        none, norms = x.new_zeros((), dtype=torch.float64), iter(found)
        found = tuple(next(norms) if len(part) else none for part in parts)
    return torch.stack(found)
