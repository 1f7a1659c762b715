"""The data pipeline is a pure function of (seed, epoch, index), whoever loads it."""

import random

import numpy as np
import torch
from toy import Points

from repro.train.data import (
    SeededDataset,
    TrainingSampler,
    dealt,
    in_order,
    keyed,
    make_loader,
    regrouped,
    shuffled,
)


def batches(workers: int = 0, epoch: int = 1, step: int = 0) -> list[torch.Tensor]:
    sampler = TrainingSampler(shuffled(64, 8, seed=3))
    loader = make_loader(Points(64, 0.1), sampler, 3, workers)
    sampler.start_at(0)
    next(iter(loader))  # a loader that has been used before must not matter
    sampler.start_at(epoch, step)
    return [points for points, _ in loader]


def test_workers_do_not_matter() -> None:
    assert torch.equal(torch.stack(batches(0)), torch.stack(batches(2)))


def test_a_resumed_epoch_is_the_rest_of_a_whole_one() -> None:
    assert torch.equal(torch.stack(batches()[5:]), torch.stack(batches(step=5)))


def test_epochs_differ_in_order_and_augmentation() -> None:
    assert not torch.equal(batches(epoch=1)[0], batches(epoch=2)[0])
    data = SeededDataset(Points(64, 0.1), 3)
    assert not torch.equal(data[0, 7][0], data[1, 7][0])
    assert torch.equal(data[1, 7][0], data[1, 7][0])


def test_loading_leaves_the_global_generators_alone() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    batches(0)
    batches(1)
    assert draw() == expected


def test_processes_and_micro_batches_share_a_step() -> None:
    plan = shuffled(64, 8, seed=0)
    whole = list(TrainingSampler(plan))
    parts = [list(TrainingSampler(plan, micro_batches=2, processes=2, rank=rank)) for rank in (0, 1)]
    assert len(parts[0]) == 16
    for step, keys in enumerate(whole):
        shared = [parts[rank][2 * step + micro] for micro in (0, 1) for rank in (0, 1)]
        assert sum(shared, []) == keys  # noqa: RUF017 (short)


def test_repeated_samples_are_augmented_apart() -> None:
    keys = [key for batch in TrainingSampler(shuffled(64, 8, seed=0, repeats=3)) for key in batch]
    assert len(keys) == len(set(keys)) == 64  # as many as without, and no augmentation comes twice
    assert [place % 3 for _, place in keys[:7]] == [0, 1, 2, 0, 1, 2, 0]
    assert len({place // 3 for _, place in keys}) == 22
    data = SeededDataset(Points(64, 0.1), 3, repeats=3)
    first, second = data[0, 21], data[0, 22]  # of sample 7
    assert first[1] == second[1]
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[0], SeededDataset(Points(64, 0.1), 3)[0, 7][0])


def test_a_last_step_may_be_smaller() -> None:
    assert [len(step) for step in shuffled(11, 4, seed=0)(0)] == [4, 4]
    steps = shuffled(11, 4, seed=0, drop_last=False)(0)
    assert [len(step) for step in steps] == [4, 4, 3]
    assert sorted(index for step in steps for index in step) == list(range(11))


def test_few_samples_are_shared_by_many() -> None:
    """Each process has at least one, each sample is taken, and shares differ by one at most."""

    def plan(epoch: int) -> list[list[int]]:
        return [[1, 2, 3, 4, 5], [6, 7]]

    parts = [list(TrainingSampler(plan, micro_batches=2, processes=2, rank=rank)) for rank in (0, 1)]
    shares = [[[index for _, index in keys] for keys in part] for part in parts]
    assert shares == [[[1], [3], [6], [6]], [[2], [4, 5], [7], [7]]]


def test_streams_keep_their_places() -> None:
    """Index = segment * streams + stream: each process goes on with the streams it has."""
    plan = in_order(12, 4)
    parts = [list(TrainingSampler(plan, micro_batches=2, processes=2, rank=rank)) for rank in (0, 1)]
    assert [[index for _, index in keys] for keys in parts[1]] == [[1], [3], [5], [7], [9], [11]]
    assert [list(step) for step in plan(0)] == [list(step) for step in plan(1)]


def test_batches_are_regrouped() -> None:
    batches = [[0, 1, 2], [3], [4, 5], [6, 7], [8]]
    plan = regrouped(batches, seed=1)
    assert sorted(plan(0)) == sorted(plan(1)) == sorted(batches)
    assert plan(0) == plan(0) != plan(1)


def test_measuring_sees_every_sample_once() -> None:
    keys = [key for rank in range(3) for batch in keyed(dealt(10, 2, 3, rank)) for key in batch]
    assert sorted(keys) == [(0, index) for index in range(10)]
    assert [len(dealt(10, 2, 3, rank)) for rank in range(3)] == [2, 2, 2]
