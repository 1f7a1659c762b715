"""Sums of squares on a GPU (csrc/sums.cuh): two launches for all tensors, which wait for nothing."""

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import cuda, native

LANES, CHAIN, UNIT, ROW_CHAIN, PARTS = 16, 512, 1 << 16, 64, 16  # as in csrc/sums_order.h
THREADS, TENSORS, WARP = 128, 480, 32  # as in csrc/sums.cuh

TYPES = {
    torch.float32: ("float", "float"),
    torch.float64: ("double", "double"),
    torch.bfloat16: ("storage::bfloat16", "float"),
    torch.float16: ("storage::float16", "float"),
}


def instance(dtype: torch.dtype) -> tuple[str, str]:
    """The name of the kernels for tensors of a dtype, and the lines of source for them."""
    name = f"sums_{native.PARAMETER[dtype]}"
    return name, f'#include "sums.cuh"\nSUMS({name}, {", ".join(TYPES[dtype])})\n'


@functools.cache
def load_kernels(dtype: torch.dtype, index: int) -> cuda.Kernels:
    """The kernels, loaded once."""
    return cuda.Kernels(*instance(dtype), ("rows", "tiles", "finish"), index)


class Plan(NamedTuple):
    """What the blocks of the launches have to do.

    Attributes:
        entries: the words of `Entry` of csrc/sums.cuh, a tensor after the other.
        ends: blocks of the first launch, for tensors 0..i.
        finishing: blocks of `finish`.
        partials, chains: how many there are.
    """

    entries: list[int]
    ends: list[int]
    finishing: int
    partials: int
    chains: int


def plan(shapes: Sequence[tuple[int, int]], tiled: bool) -> Plan:
    """The plan for tensors of [rows, length] elements, by rows, or with `tiled` by rows and columns."""
    entries, ends = [], []
    row = column = partial = chain = end = finished = 0
    for rows, length in shapes:
        chunks, chains = -(-length // CHAIN), -(-rows // ROW_CHAIN)
        if tiled:
            parts, blocks = chunks, chunks * chains
        elif length > UNIT:
            parts = -(-length // UNIT)
            blocks = rows * parts
        else:
            parts = min(chunks, 1)
            blocks = -(-rows // (UNIT // CHAIN // chunks)) if chunks else 0
        end += blocks
        finished += -(-rows // PARTS) if parts != 1 else 0
        finished += -(-length // WARP) if tiled and chains != 1 else 0
        entries += [rows, length, row, column, partial, chain, end, finished]
        ends.append(end)
        row, column = row + rows, column + length
        partial += rows * parts if parts > 1 else 0
        chain += chains * length if tiled and chains > 1 else 0
    return Plan(entries, ends, finished, partial, chain)


class Work(ctypes.Structure):
    """`Work` of csrc/sums.cuh."""

    _fields_ = (
        *(("entries", ctypes.c_void_p), ("count", ctypes.c_int64)),
        *((name, ctypes.c_void_p) for name in ("weights", "rows", "columns", "partials", "chains")),
    )


class CudaSums:
    """`adan_optim.engine.sums.Sums` of tensors on one CUDA device.

    Only what the blocks have to do stays in device memory, in that of the stream that was current when it was
    put there: a step on another stream makes it again. Results and intermediate sums are new ones each time.
    """

    def __init__(self, dtype: torch.dtype, shapes: Sequence[tuple[int, int]], index: int) -> None:
        self._kernels = load_kernels(dtype, index)
        self._shapes = shapes
        self._counts = [sum(counts) for counts in zip(*shapes, strict=True)]
        self._work = torch.promote_types(dtype, torch.float32)
        self._plans: dict[bool, tuple[Plan, Tensor, int]] = {}

    def rows(self, x: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
        return self._launch(x, weights, tiled=False)

    def rows_and_columns(self, x: Sequence[Tensor]) -> Tensor:
        return self._launch(x, None, tiled=True)

    def _launch(self, x: Sequence[Tensor], weights: Tensor | None, tiled: bool) -> Tensor:
        kernels, size = self._kernels, self._work.itemsize
        with kernels.device():
            stream, _ = kernels.stream()
            found, entries = self._plan(tiled, stream)
            rows, columns = self._counts[0], self._counts[1] if tiled else 0
            sums, chains = (self._empty(count) for count in (rows + columns, found.chains))
            partials = kernels.empty(found.partials)
            to = sums.data_ptr()
            addresses = (entries.data_ptr(), len(x), None if weights is None else weights.data_ptr())
            work = Work(*addresses, to, to + size * rows, partials.data_ptr(), chains.data_ptr())
            for first in range(0, len(x), TENSORS):
                some = [t.data_ptr() for t in x[first : first + TENSORS]]
                blocks = found.ends[first + len(some) - 1] - (found.ends[first - 1] if first else 0)
                if blocks:
                    given = ctypes.c_int64(first), (ctypes.c_void_p * TENSORS)(*some)
                    kernels.launch("tiles" if tiled else "rows", stream, blocks, THREADS, work, *given)
            if found.finishing:
                threads = WARP * PARTS
                kernels.launch("finish", stream, found.finishing, threads, work, ctypes.c_int64(tiled))
        return sums

    def _plan(self, tiled: bool, stream: int) -> tuple[Plan, Tensor]:
        """The plan, and its entries in memory of the stream."""
        if tiled not in self._plans or self._plans[tiled][2] != stream:
            found = plan(self._shapes, tiled)
            self._plans[tiled] = found, cuda.upload(self._kernels, found.entries, stream), stream
        return self._plans[tiled][:2]

    def _empty(self, count: int) -> Tensor:
        """[count], in the type of the arithmetic."""
        words = -(-count * self._work.itemsize // 8)
        return self._kernels.empty(words).view(self._work)[:count]
