"""Runs the PTX that NVRTC makes of csrc/cuda.cu, without a GPU: `program` reads it, `machine` executes it,
`arithmetic` computes.

The PTX ISA is described in NVIDIA's manual of that name; what is here is the part of it that our kernels
compile to, and anything else is an error. All threads of a launch are executed together as numpy arrays, and
everything that a GPU would leave undefined is a `Fault`: an access out of bounds or not aligned, memory or a
register that is read before it is written, two warps on one byte, a shuffle or barrier that threads miss.
"""

from .arithmetic import Fault
from .machine import Launch, Memory
from .program import Module

__all__ = ["Fault", "Launch", "Memory", "Module"]
