"""How tensors lie in memory."""

import torch
from torch import Tensor


def is_plain(x: Tensor) -> bool:
    """Whether x is a tensor of torch's own, and not of a class that computes its own way, as FakeTensor."""
    return type(x).__torch_dispatch__ is Tensor.__torch_dispatch__


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill one block of memory exactly: contiguous, channels_last, any permutation."""
    if x.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape keep their elements in the same order in memory."""
    return a.stride() == b.stride() or all(
        x == y for x, y, size in zip(a.stride(), b.stride(), a.shape, strict=True) if size != 1
    )


# Large CPU tensors all begin at the same place of a 4 KiB page, and a processor that streams through six of
# them in step takes a load for dependent on the store to another array with the same low address bits
# (4K aliasing): 1.1 times slower here. A different offset for each state prevents that.
_LARGE, _SHIFT = 1 << 16, 704  # bytes


def zeros_like(p: Tensor, slot: int, dtype: torch.dtype) -> Tensor:
    """Zeros laid out in memory as p; `slot` numbers the states of a parameter."""
    if p.device.type != "cpu" or p.numel() * dtype.itemsize < _LARGE or not is_plain(p) or not is_dense(p):
        return torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
    shift = (slot + 1) * _SHIFT // dtype.itemsize
    return torch.zeros(p.numel() + shift, dtype=dtype, device="cpu").as_strided(p.shape, p.stride(), shift)
