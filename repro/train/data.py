"""Data loading in which every batch is a function of (seed, epoch, index), so that it can resume anywhere.

The order of an epoch depends only on (seed, epoch), and the augmentation of a sample only on (seed, epoch,
index, copy): not on the number of workers, nor on the samples loaded before.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from repro.errors import UserError
from repro.train.seeding import hashed, left_alone, seed_generators

Key = tuple[int, int]  # (epoch, index)

# epoch -> the indices of the samples of each optimizer step; all epochs have the same number of steps
Plan = Callable[[int], Sequence[Sequence[int]]]


class Sized(Protocol):
    """A map-style data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


def shuffled(size: int, batch_size: int, seed: int, repeats: int = 1, drop_last: bool = True) -> Plan:
    """Return the plan that takes `batch_size` samples per step, in a new order each epoch.

    An incomplete last step is left out with `drop_last`, and kept otherwise. With `repeats` above 1 each
    sample comes that many times in a row, as index * repeats + copy (see SeededDataset). The epoch keeps its
    length, so it has `size / repeats` samples (repeated augmentation, Hoffer et al., arXiv 1901.09335).
    """

    def plan(epoch: int) -> Sequence[Sequence[int]]:
        generator = torch.Generator().manual_seed(hashed(f"order {seed} {epoch}"))
        order = torch.randperm(size, generator=generator).numpy()
        if repeats > 1:
            order = (order[:, None] * repeats + np.arange(repeats)).reshape(-1)[:size]
        end = size - size % batch_size if drop_last else size
        steps: list[Any] = [order[begin : begin + batch_size] for begin in range(0, end, batch_size)]
        return steps

    return plan


def in_order(size: int, batch_size: int) -> Plan:
    """Return the plan that takes the next `batch_size` samples each step, in the same order every epoch."""
    return lambda epoch: [range(begin, min(begin + batch_size, size)) for begin in range(0, size, batch_size)]


def regrouped(batches: Sequence[Sequence[int]], seed: int) -> Plan:
    """Return the plan whose steps are the given batches, in a new order each epoch."""

    def plan(epoch: int) -> Sequence[Sequence[int]]:
        generator = torch.Generator().manual_seed(hashed(f"order {seed} {epoch}"))
        return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]

    return plan


def dealt(size: int, batch_size: int, processes: int = 1, rank: int = 0) -> Sequence[Sequence[int]]:
    """Return the evaluation batches of a process; over all processes, each sample comes exactly once.

    There is no padding, so counts are exact.
    """
    indices = range(rank, size, processes)
    return [indices[begin : begin + batch_size] for begin in range(0, len(indices), batch_size)]


def keyed(batches: Sequence[Sequence[int]]) -> list[list[Key]]:
    """Return batches of indices as batches of keys, for data without randomness."""
    return [[(0, index) for index in batch] for batch in batches]


class TrainingSampler(Sampler[list[Key]]):
    """The micro-batches of one epoch of a plan, as keys, from a given step.

    Each process gets a contiguous share of every micro-batch. Shares differ by at most one sample. A step
    with fewer samples than shares repeats its first samples.
    """

    def __init__(self, plan: Plan, micro_batches: int = 1, processes: int = 1, rank: int = 0) -> None:
        self.plan = lru_cache(1)(plan)  # it may shuffle millions of samples
        self.micro_batches, self.processes, self.rank = micro_batches, processes, rank
        self.steps = len(self.plan(0))
        self.epoch, self.first_step = 0, 0

    def start_at(self, epoch: int, step: int = 0) -> None:
        """Start the next iteration at optimizer step `step` of `epoch`."""
        self.epoch, self.first_step = epoch, step

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.micro_batches

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, shares = self.epoch, self.micro_batches * self.processes
        for samples in self.plan(epoch)[self.first_step :]:
            taken = np.resize(np.asarray(samples), max(len(samples), shares))
            for share in range(self.rank, shares, self.processes):
                begin, end = (len(taken) * edge // shares for edge in (share, share + 1))
                yield [(epoch, index) for index in taken[begin:end].tolist()]


class SeededDataset(Dataset[Any]):
    """Data addressed by (epoch, index * repeats + copy), with the global generators seeded at each access.

    With `seed=None`, for data without randomness, the generators are not touched.
    """

    def __init__(self, data: Sized, seed: int | None, repeats: int = 1) -> None:
        self.data, self.seed, self.repeats = data, seed, repeats

    def __getitem__(self, key: Key) -> Any:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> list[Any]:
        """Return the samples of a batch; the generators are restored once, which is slower than seeding."""
        if self.seed is None:
            return [self.data[place // self.repeats] for _, place in keys]
        with left_alone():
            return [self._seeded(*key) for key in keys]

    def _seeded(self, epoch: int, place: int) -> Any:
        index, copy = divmod(place, self.repeats)
        name = f"sample {self.seed} {epoch} {index}" + (f" {copy}" if copy else "")
        seed_generators(name, devices=False)  # samples are made on the CPU
        return self.data[index]


class Loader(DataLoader[Any]):
    """A DataLoader that reports the death of a worker as such, at any point of a transfer."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator around torch's own
        """Yield the batches.

        Raises:
            UserError, RuntimeError: a worker died; the latter is torch's, see repro.explain.
        """
        try:
            yield from super().__iter__()
        except (EOFError, ConnectionError, FileNotFoundError) as error:
            if self.num_workers == 0 or str(error).startswith("Caught "):  # an error of the data set
                raise
            time.sleep(10)  # torch raises its RuntimeError as soon as the system reports the death
            raise UserError(
                f"a process that loads data has ended ({error!r}): set a lower workers=N; the same command "
                "continues"
            ) from error


def make_loader(
    data: Sized,
    batches: Iterable[list[Key]],
    seed: int | None,
    workers: int,
    repeats: int = 1,
    collate: Callable[[list[Any]], Any] = default_collate,
) -> DataLoader[Any]:
    """Return the DataLoader of `batches` of `data`, combined by `collate`; see SeededDataset for `seed`.

    It has at most as many workers as there are cores.
    """
    workers = min(workers, os.cpu_count() or 1)
    return Loader(
        SeededDataset(data, seed, repeats),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else each pass would draw from the global one
    )
