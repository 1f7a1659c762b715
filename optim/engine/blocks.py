"""Blocks of a tensor's elements that share one number, also where the tensor is sharded.

The blocks of a parameter are given by the shape of the tensor that holds their numbers:

* `(n,)`: n blocks of L = numel / n elements that follow each other in row-major (logical) order, whatever the
  layout in memory. Element i is in block i // L.
* one number for each dimension: dimension d is cut into blocks[d] equal parts, and a block is a part of
  every dimension. For blocks that do not follow each other: (1, 12) are 12 groups of columns of a matrix.

Blocks that can be written in the first way are, see `canonical`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .dtensor import is_dtensor, local, reduce_over_mesh

Shape = tuple[int, ...]


def default(shape: Sequence[int]) -> Shape:
    """The blocks of a tensor of which nothing but the shape is known.

    One for each index of the first dimension (rows; the first one larger than 1, but never the last), and
    one for a tensor with less than two dimensions.
    """
    return (next((n for n in shape[:-1] if n > 1), 1) if math.prod(shape) else 1,)


def fits(shape: Sequence[int], blocks: Sequence[int]) -> bool:
    """Whether a tensor of this shape can be cut into these blocks."""
    if any(n < 1 for n in blocks):
        return False
    if len(blocks) == 1:
        return math.prod(shape) % blocks[0] == 0
    return len(blocks) == len(shape) and all(s % n == 0 for s, n in zip(shape, blocks, strict=True))


def canonical(shape: Sequence[int], blocks: Sequence[int]) -> Shape:
    """The same blocks as `(n,)` if their elements follow each other."""
    whole = 0  # leading dimensions that are cut into single indices
    while whole < len(blocks) and len(blocks) == len(shape) and blocks[whole] == shape[whole]:
        whole += 1
    follow = all(n == 1 for n in blocks[whole + 1 :])
    return (math.prod(blocks),) if follow else tuple(blocks)


def follow_in_memory(p: Tensor, blocks: Sequence[int]) -> bool:
    """Whether blocks `(n,)` of a dense tensor are runs of its memory, in their order."""
    if len(blocks) > 1:
        return False
    if p.is_contiguous() or blocks[0] == 1:
        return True
    first = p.stride(0) * p.shape[0] == p.numel()  # the first dimension is the outermost one in memory, too
    return first and p.shape[0] % blocks[0] == 0


def squared_sums(g: Tensor, blocks: Shape) -> Tensor:
    """The sum of squares of each block.

    Args:
        g: any layout in memory; of a DTensor, the sums are those of all shards.
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
    """The numbers of p's blocks as a tensor that broadcasts over p, or over this process's part of a DTensor.

    Args:
        x: one number for each block; its shape says which blocks they are.
        p: any layout in memory.
    """
    cells = _cells(p.shape, x.shape)
    parts = _parts(cells, x.shape)
    x = x.reshape([n for pair in parts for n in (pair[0], 1)])
    x = x.expand([n for pair in parts for n in pair]).reshape(cells)
    return x[_place(p, cells)] if is_dtensor(p) else x


def _cells(shape: Sequence[int], blocks: Sequence[int]) -> Shape:
    """The shape, with 1 for each dimension along which all elements are in one block."""
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
    """Parts and cells in a part, for each dimension of the blocks."""
    sizes = cells if len(cells) == len(blocks) else (math.prod(cells),)
    return [(n, size // n) for size, n in zip(sizes, blocks, strict=True)]


def _place(p: Tensor, cells: Shape) -> tuple[slice, ...]:
    """Where this process's part of a DTensor lies among the cells of the whole."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    spec = p.device_mesh, p.placements  # type: ignore[attr-defined]
    sizes, starts = compute_local_shape_and_global_offset(p.shape, *spec)
    return tuple(
        slice(start, start + size) if n > 1 else slice(None)
        for n, start, size in zip(cells, starts, sizes, strict=True)
    )
