"""Data loading whose every batch is a function of (seed, epoch, index), hence resumable anywhere.

The order of an epoch depends on (seed, epoch) alone, and the randomness of one sample's augmentation on
(seed, epoch, index, copy) alone: not on the number of workers, nor on which samples were loaded before.
"""

import os
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from repro.generators import hashed, left_alone, seed_generators

Key = tuple[int, int, int]  # (epoch, index, copy): copies of a sample in one epoch are augmented apart


class Sized(Protocol):
    """A map-style data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


class TrainingSampler(Sampler[list[Key]]):
    """Micro-batches of keys of one epoch, from a given step on.

    Every optimizer step takes the next `batch_size` samples of the epoch's order; each process gets an equal,
    contiguous share of each micro-batch. What does not fill a step is left out.

    With `repeats` above 1 each sample comes that often in a row, and the epoch is as long as without: it sees
    `size / repeats` samples (repeated augmentation, Hoffer et al., arXiv 1901.09335).
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        accumulate: int = 1,
        processes: int = 1,
        rank: int = 0,
        repeats: int = 1,
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.accumulate, self.processes, self.rank = accumulate, processes, rank
        self.repeats = repeats
        self.steps = size // batch_size
        self.epoch, self.first_step = 0, 0

    def start_at(self, epoch: int, step: int = 0) -> None:
        """Make the next iteration go through `epoch` from its optimizer step `step` on."""
        self.epoch, self.first_step = epoch, step

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(hashed(f"order {self.seed} {epoch}"))
        order = torch.randperm(self.size, generator=generator).tolist()
        share = self.batch_size // (self.accumulate * self.processes)
        for step in range(self.first_step, self.steps):
            for micro in range(self.accumulate):
                begin = step * self.batch_size + (micro * self.processes + self.rank) * share
                places = (divmod(place, self.repeats) for place in range(begin, begin + share))
                yield [(epoch, order[sample], copy) for sample, copy in places]


class EvaluationSampler(Sampler[list[Key]]):
    """Each sample exactly once over all processes, in order: nothing is padded, so counts are exact."""

    def __init__(self, size: int, batch_size: int, processes: int = 1, rank: int = 0) -> None:
        self.indices = range(rank, size, processes)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for begin in range(0, len(self.indices), self.batch_size):
            yield [(0, index, 0) for index in self.indices[begin : begin + self.batch_size]]


class SeededDataset(Dataset[Any]):
    """`data` addressed by (epoch, index, copy), with the global random generators seeded during each access.

    With `seed=None` (nothing random in `data`) the generators are left alone.
    """

    def __init__(self, data: Sized, seed: int | None) -> None:
        self.data, self.seed = data, seed

    def __getitem__(self, key: Key) -> Any:
        epoch, index, copy = key
        if self.seed is None:
            return self.data[index]
        name = f"sample {self.seed} {epoch} {index}" + (f" {copy}" if copy else "")
        with left_alone():
            seed_generators(name, devices=False)  # samples are made on the CPU
            return self.data[index]


def make_loader(data: Sized, sampler: Sampler[list[Key]], seed: int | None, workers: int) -> DataLoader[Any]:
    """Return the DataLoader of `data` in the order of `sampler`; see SeededDataset for `seed`.

    It has `workers`, but no more than there are cores: the others would only wait.
    """
    workers = min(workers, os.cpu_count() or 1)
    return DataLoader(
        SeededDataset(data, seed),
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or it would draw from the global one, once per pass
    )
