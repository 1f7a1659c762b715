"""Data loading in which every batch is a function of (seed, epoch, index), so that it can resume anywhere.

The order of an epoch depends only on (seed, epoch), and the augmentation of a sample only on (seed, epoch,
index, copy): not on the number of workers, nor on the samples loaded before or with it.

A data set in memory makes whole batches (`Whole`), which takes microseconds and no workers. Any other one
makes samples, one after the other, in as many worker processes as the configuration says.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, default_collate

from repro.errors import UserError
from repro.train.seeding import Draws, hashed, left_alone, seed_generators

FIXED = "fixed"  # name of the Draws for data without randomness, such as masks for validation

# epoch -> the indices of the samples of each optimizer step; all epochs have the same number of steps
Plan = Callable[[int], Sequence[Sequence[int]]]

# A function that makes a batch, as Task.move gets it, of the samples at the given indices [batch]
Maker = Callable[[NDArray[np.int64], Draws], Any]


class Sized(Protocol):
    """A map-style data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


class Whole(Sized, Protocol):
    """A map-style data set that makes a whole batch at once."""

    def whole_batch(self, indices: NDArray[np.int64], draws: Draws) -> Any:
        """Return the samples at `indices` [batch] as Task.move gets them, random in nothing but `draws`."""


class Keys(NamedTuple):
    """The samples of a batch.

    places: index * repeats + copy of each sample [batch].
    """

    epoch: int
    places: NDArray[np.int64]


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


def keyed(batches: Sequence[Sequence[int]]) -> list[Keys]:
    """Return the keys of batches of indices, for data without randomness."""
    return [Keys(0, np.asarray(batch, np.int64)) for batch in batches]


class TrainingSampler(Sampler[Keys]):
    """The micro-batches of one epoch of a plan, from a given step.

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

    def __iter__(self) -> Iterator[Keys]:
        epoch, shares = self.epoch, self.micro_batches * self.processes
        for samples in self.plan(epoch)[self.first_step :]:
            taken = np.asarray(samples, np.int64)
            if len(taken) < shares:
                taken = np.resize(taken, shares)
            for share in range(self.rank, shares, self.processes):
                begin, end = (len(taken) * edge // shares for edge in (share, share + 1))
                yield Keys(epoch, taken[begin:end])


def maker(data: Sized) -> Maker | None:
    """Return the function that makes whole batches of a data set or a Subset of one, if it has one."""
    if isinstance(data, Subset):
        make = maker(data.dataset)  # type: ignore[arg-type]
        indices = np.asarray(data.indices)
        return make and (lambda places, draws: make(indices[places], draws))
    return getattr(data, "whole_batch", None)


class SeededDataset(Dataset[Any]):
    """Samples addressed by (epoch, place), see Keys, with the global generators seeded for each.

    With `seed=None`, for data without randomness, the generators are not touched.
    """

    def __init__(self, data: Sized, seed: int | None, repeats: int = 1) -> None:
        self.data, self.seed, self.repeats = data, seed, repeats

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, place = key
        return self.__getitems__(Keys(epoch, np.array([place])))[0]

    def __getitems__(self, keys: Keys) -> list[Any]:
        """Return the samples of a batch; the generators are restored once, which is slower than seeding."""
        places = keys.places.tolist()
        if self.seed is None:
            return [self.data[place // self.repeats] for place in places]
        with left_alone():
            return [self._seeded(keys.epoch, place) for place in places]

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


class WholeLoader:
    """The batches that `make` makes; with `seed=None` their random numbers depend on the places alone."""

    def __init__(
        self, make: Maker, batches: TrainingSampler | list[Keys], seed: int | None, repeats: int = 1
    ) -> None:
        self.make, self.batches, self.seed, self.repeats = make, batches, seed, repeats
        self.pinned = torch.cuda.is_available()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches."""
        for keys in self.batches:
            name = FIXED if self.seed is None else f"samples {self.seed} {keys.epoch}"
            batch = self.make(keys.places // self.repeats, Draws(name, keys.places))
            yield tree_map(torch.Tensor.pin_memory, batch) if self.pinned else batch


def make_loader(
    data: Sized,
    batches: TrainingSampler | list[Keys],
    seed: int | None,
    workers: int,
    repeats: int = 1,
    collate: Callable[[list[Any]], Any] = default_collate,
) -> WholeLoader | DataLoader[Any]:
    """Return a loader of `batches` of `data`.

    Args:
        data: makes whole batches (`Whole`), or samples.
        batches: the samples of each batch.
        seed: of everything random in them; None for data without randomness.
        workers: processes that make samples, at most as many as there are cores; whole batches need none.
        repeats: copies of a sample, see `shuffled`.
        collate: makes a batch of samples.
    """
    make = maker(data)
    if make is not None:
        return WholeLoader(make, batches, seed, repeats)
    workers = min(workers, os.cpu_count() or 1)
    return Loader(
        SeededDataset(data, seed, repeats),
        batch_sampler=cast(Any, batches),  # torch's annotation is for lists
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else each pass would draw from the global one
    )
