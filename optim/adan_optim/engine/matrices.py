"""Parameters as matrices cut into blocks, the square matrices of a block's two sides, and stacks of them."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

# Elements of a stack: enough to fill a GPU, and little memory next to a model with more blocks.
STACK = 2**24


def cut(x: Tensor, block_size: int) -> list[Tensor]:
    """Return the blocks [m, n] of a tensor [first, ...] as the matrix [first, all others], row by row.

    A side is cut into the fewest parts of at most block_size; their lengths differ by at most one. Blocks of
    a contiguous tensor are views of it.
    """
    x = x.reshape(x.shape[0], -1)
    rows, columns = (-(-length // block_size) for length in x.shape)
    return [block for row in x.tensor_split(rows, 0) for block in row.tensor_split(columns, 1)]


@cache
def block_shapes(shape: tuple[int, ...], block_size: int) -> tuple[tuple[int, int], ...]:
    """Return the shapes of a tensor's blocks; () for vectors: one dimension, row or column, or empty."""
    if len(shape) < 2 or min(shape[0], math.prod(shape[1:])) < 2:
        return ()
    blocks = cut(torch.empty(shape, device="meta"), block_size)
    return tuple((x.shape[0], x.shape[1]) for x in blocks)


def sides_shape(shape: Sequence[int], block_size: int) -> tuple[int, int]:
    """Return the shape [blocks, max(m^2 + n^2)] of a tensor with the [m, m] and [n, n] of each block."""
    blocks = block_shapes(tuple(shape), block_size)
    return len(blocks), max((m * m + n * n for m, n in blocks), default=0)


def sides(rows: Tensor, shape: Sequence[int], block_size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the matrices [m, m] and [n, n] of each block, as views of `rows`, which is of `sides_shape`.

    Raises:
        ValueError: if `rows` was made with another block_size.
    """
    if rows.shape != sides_shape(shape, block_size):
        raise ValueError(f"block_size={block_size}: a parameter has states for another; leave it as it was")
    blocks = block_shapes(tuple(shape), block_size)
    return [
        (row[: m * m].view(m, m), row[m * m : m * m + n * n].view(n, n))
        for row, (m, n) in zip(rows, blocks, strict=True)
    ]


def alike(rows: Sequence[tuple[Tensor, ...]]) -> Iterator[list[tuple[Tensor, ...]]]:
    """Group the rows whose tensors have the same shapes; yield each group's columns, ready to be stacked.

    A row is a tuple of tensors of any shapes; a column has one tensor from each row of its group.
    """
    by_shape = defaultdict(list)
    for row in rows:
        by_shape[tuple(x.shape for x in row)].append(row)
    for same in by_shape.values():
        count = max(1, STACK // max(x.numel() for x in same[0]))
        for i in range(0, len(same), count):
            yield list(zip(*same[i : i + count], strict=True))


def eigh(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return eigenvalues [..., n], ascending, and eigenvectors [..., n, n] of symmetric matrices [..., n, n].

    They are float64 where float32 does not converge, and None where neither does.
    """
    for dtype in (x.dtype, torch.float64):
        try:
            values, vectors = torch.linalg.eigh(x.to(dtype))
            return values, vectors
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
    return None
