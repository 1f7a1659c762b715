"""How tensors lie in memory."""

import contextlib
import mmap

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
    return _zeros(p.numel() + shift, dtype).as_strided(p.shape, p.stride(), shift)


# In pages of 2 MiB instead of 4 KiB, where the system has them, a step looks up fewer addresses. What it
# gains differs from process to process (benchmarks/pages.py); an array has to begin with such a page.
_HUGE = 1 << 21  # bytes


def _zeros(count: int, dtype: torch.dtype) -> Tensor:
    """Zeros [count] on the CPU, in huge pages if they fill one."""
    size = count * dtype.itemsize
    if size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(count, dtype=dtype, device="cpu")
    buffer = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -torch.frombuffer(buffer, dtype=torch.uint8, count=1).data_ptr() % _HUGE
    with contextlib.suppress(OSError):  # from a kernel built without them
        buffer.madvise(mmap.MADV_HUGEPAGE, start, size)
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=start)
