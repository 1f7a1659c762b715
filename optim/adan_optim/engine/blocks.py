"""Blocks of a tensor's elements that share one number; the tensor may be sharded.

The shape of the tensor of these numbers defines the blocks:

* `(n,)`: n blocks of L = numel / n consecutive elements in row-major (logical) order, whatever the layout in
  memory. Element i is in block i // L.
* one number per dimension: dimension d is cut into blocks[d] equal parts, and a block is one part of every
  dimension. This is for blocks that are not consecutive: (1, 12) means 12 groups of columns of a matrix.

`canonical` writes blocks in the first form where that is possible.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .dtensor import is_dtensor, local, reduce_over_mesh, tensor_module

Shape = tuple[int, ...]


def default(shape: Sequence[int]) -> Shape:
    """Return the blocks of a tensor of this shape, if nothing else is known about it.

    There is one for each index of the first dimension that is larger than 1 and not the last (rows), and one
    for a tensor of fewer than two dimensions.
    """
    return (next((n for n in shape[:-1] if n > 1), 1) if math.prod(shape) else 1,)


def fits(shape: Sequence[int], blocks: Sequence[int]) -> bool:
    """Return whether a tensor of this shape can be cut into these blocks."""
    if any(n < 1 for n in blocks):
        return False
    if len(blocks) == 1:
        return math.prod(shape) % blocks[0] == 0
    return len(blocks) == len(shape) and all(s % n == 0 for s, n in zip(shape, blocks, strict=True))


def canonical(shape: Sequence[int], blocks: Sequence[int]) -> Shape:
    """Return the same blocks, as `(n,)` if their elements are consecutive."""
    whole = 0  # leading dimensions that are cut into single indices
    while whole < len(blocks) and len(blocks) == len(shape) and blocks[whole] == shape[whole]:
        whole += 1
    follow = all(n == 1 for n in blocks[whole + 1 :])
    return (math.prod(blocks),) if follow else tuple(blocks)


def follow_in_memory(p: Tensor, blocks: Sequence[int]) -> bool:
    """Return whether the blocks of a dense tensor of any shape are consecutive in memory, in order."""
    if len(blocks) > 1:
        return False
    if p.is_contiguous() or blocks[0] == 1:
        return True
    first = p.stride(0) * p.shape[0] == p.numel()  # the first dimension is also the outermost in memory
    return first and p.shape[0] % blocks[0] == 0


def squared_sums(g: Tensor, blocks: Shape) -> Tensor:
    """Return the sum of squares of each block.

    Args:
        g: any shape and layout in memory; sums of a DTensor are over all shards.
        blocks: the blocks of the whole tensor.

    Returns:
        A plain tensor of shape `blocks`, in g's dtype.
    """
    part, cells = local(g), _cells(g.shape, blocks)
    shared = [d for d, n in enumerate(cells) if n == 1]
    squares = torch.linalg.vector_norm(part, dim=shared, keepdim=True).square() if shared else part.square()
    if is_dtensor(g):
        whole = squares.new_zeros(cells)
        whole[_place(g, cells)] = squares
        squares = whole
    parts = _parts(cells, blocks)
    sums = squares.reshape([n for pair in parts for n in pair]).sum([2 * d + 1 for d in range(len(parts))])
    return reduce_over_mesh(sums, g.device_mesh, g.placements) if is_dtensor(g) else sums  # type: ignore[attr-defined]


def spread(x: Tensor, p: Tensor) -> Tensor:
    """Return the numbers of p's blocks as a tensor that broadcasts over p, or over p's local shard.

    Args:
        x: one number per block; its shape defines the blocks.
        p: any shape and layout in memory.
    """
    cells = _cells(p.shape, x.shape)
    parts = _parts(cells, x.shape)
    x = x.reshape([n for pair in parts for n in (pair[0], 1)])
    x = x.expand([n for pair in parts for n in pair]).reshape(cells)
    return x[_place(p, cells)] if is_dtensor(p) else x


def _cells(shape: Sequence[int], blocks: Sequence[int]) -> Shape:
    """The shape, with 1 for each dimension along which blocks do not change."""
    if len(blocks) > 1:
        return tuple(s if n > 1 else 1 for s, n in zip(shape, blocks, strict=True))
    cells, run, size = list(shape), math.prod(shape) // blocks[0], 1
    for d in reversed(range(len(shape))):
        size *= shape[d]
        if not size or run % size:
            break
        cells[d] = 1
    return tuple(cells)


def _parts(cells: Shape, blocks: Sequence[int]) -> list[tuple[int, int]]:
    """The number of parts, and of cells in a part, for each dimension of the blocks."""
    sizes = cells if len(cells) == len(blocks) else (math.prod(cells),)
    return [(n, size // n) for size, n in zip(sizes, blocks, strict=True)]


def _place(p: Tensor, cells: Shape) -> tuple[slice, ...]:
    """The slices of the whole DTensor's cells that are this process's."""
    part_of = tensor_module("._utils").compute_local_shape_and_global_offset
    sizes, starts = part_of(p.shape, p.device_mesh, p.placements)  # type: ignore[attr-defined]
    return tuple(
        slice(start, start + size) if n > 1 else slice(None)
        for n, start, size in zip(cells, starts, sizes, strict=True)
    )
