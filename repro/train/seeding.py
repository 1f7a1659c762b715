"""The global random generators, reseeded wherever randomness begins.

All randomness in a run (augmentation of a sample, masks and mixing of a micro-batch) is thus a function of
names (seed, epoch, index, ...), and checkpoints need not store the states of the generators.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the step of SplitMix64: 2^64 over the golden ratio


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


class Draws:
    """Random numbers for the samples of a batch, each a function of (name, place, column) alone.

    A sample gets the same numbers in any batch, without a generator that would have to be seeded for it. Its
    numbers are SplitMix64's (Steele et al., OOPSLA 2014, doi 10.1145/2660193.2660195) from a hash of the name
    and its place.

    Args:
        name: the same for all samples, such as the seed and the epoch.
        places: tell the samples apart [batch], int64.
    """

    def __init__(self, name: str, places: NDArray[np.int64]) -> None:
        self.seeds = _mixed(np.uint64(_kept(name)) + places.astype(np.uint64) * GOLDEN)[:, None]

    def __call__(self, columns: ArrayLike) -> NDArray[np.float64]:
        """Return a number in [0, 1) for each sample and column [batch, columns].

        Args:
            columns: numbers from 0, the same for all samples [columns], or other ones for each
                [batch, columns].
        """
        bits = _mixed(self.seeds + (np.asarray(columns).astype(np.uint64) + np.uint64(1)) * GOLDEN)
        return (bits >> np.uint64(11)) * np.float64(2**-53)


_kept = lru_cache(1)(hashed)  # all batches of an epoch have the same name


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return SplitMix64's hash of each element."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


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
