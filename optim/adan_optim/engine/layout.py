"""How tensors, of any shape, lie in memory."""

import torch
from torch import Tensor


def is_plain(x: Tensor) -> bool:
    """Return whether x is an ordinary tensor, not of a subclass with its own dispatch, like FakeTensor."""
    return type(x).__torch_dispatch__ is Tensor.__torch_dispatch__


def is_dense(x: Tensor) -> bool:
    """Return whether the elements fill one block of memory: contiguous, channels_last, any permutation."""
    if x.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((n, size) for n, size in zip(x.stride(), x.shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of one shape have their elements in the same order in memory."""
    return a.stride() == b.stride() or all(
        x == y for x, y, size in zip(a.stride(), b.stride(), a.shape, strict=True) if size != 1
    )


# Large CPU tensors all start at the same offset in a 4 KiB page. A processor that streams through six of them
# in step then mistakes a load for dependent on a store to another array with the same low address bits (4K
# aliasing), which is 1.1 times slower here. A different offset for each state prevents that.
_LARGE, _SHIFT = 1 << 16, 704  # bytes


def zeros_like(p: Tensor, slot: int, dtype: torch.dtype) -> Tensor:
    """Return zeros with the shape and memory layout of p; `slot` is the index of the state."""
    if p.device.type != "cpu" or p.numel() * dtype.itemsize < _LARGE or not is_plain(p) or not is_dense(p):
        return torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
    shift = (slot + 1) * _SHIFT // dtype.itemsize
    return torch.zeros(p.numel() + shift, dtype=dtype, device="cpu").as_strided(p.shape, p.stride(), shift)
