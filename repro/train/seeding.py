"""The global random generators, reseeded wherever randomness begins.

What is random in a run (a sample's augmentation, the masks and mixing of a micro-batch) is thus a function of
names (seed, epoch, index, ...) alone, and a checkpoint need not keep the generators' states.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def hashed(name: str) -> int:
    """Return 63 well-mixed bits of `name`, the same in every process and version of Python."""
    return random.Random(name).getrandbits(63)


def seed_generators(name: str, devices: bool = True) -> None:
    """Seed the global generators of Python, NumPy and torch by `name`, with `devices` those of GPUs, too."""
    random.seed(hashed(name))
    np.random.seed(random.getrandbits(32))  # noqa: NPY002 (timm uses it)
    torch_seed = random.getrandbits(63)
    torch.default_generator.manual_seed(torch_seed)
    if devices and torch.accelerator.is_available():
        # torch.manual_seed also remembers it, with a stack trace (0.5 ms), for kinds that are not here
        torch.get_device_module().manual_seed(torch_seed)


@contextmanager
def left_alone() -> Iterator[None]:
    """Put the generators of the CPU back into their states when the block ends."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
