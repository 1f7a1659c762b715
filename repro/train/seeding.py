"""The global random generators, reseeded wherever randomness begins.

All randomness in a run (augmentation of a sample, masks and mixing of a micro-batch) is thus a function of
names (seed, epoch, index, ...), and checkpoints need not store the states of the generators.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def hashed(name: str) -> int:
    """Return a 63-bit hash of `name`, the same in every process and version of Python."""
    return random.Random(name).getrandbits(63)


def seed_generators(name: str, devices: bool = True) -> None:
    """Seed the global generators of Python, NumPy and torch by `name`; `devices`: also those of GPUs."""
    random.seed(hashed(name))
    np.random.seed(random.getrandbits(32))  # noqa: NPY002 (timm uses it)
    torch_seed = random.getrandbits(63)
    torch.default_generator.manual_seed(torch_seed)
    if devices and torch.accelerator.is_available():
        # torch.manual_seed would also seed absent kinds of devices lazily, with a stack trace (0.5 ms)
        torch.get_device_module().manual_seed(torch_seed)


@contextmanager
def left_alone() -> Iterator[None]:
    """Restore the states of the CPU generators at the end of the block."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
