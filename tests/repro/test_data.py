"""The data pipeline is a pure function of (seed, epoch, index), whoever loads it."""

import random

import numpy as np
import torch
from toy import Points

from repro.data import EvaluationSampler, SeededDataset, TrainingSampler, make_loader


def batches(workers: int = 0, epoch: int = 1, step: int = 0) -> list[torch.Tensor]:
    sampler = TrainingSampler(64, 8, seed=3)
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
    assert not torch.equal(data[0, 7, 0][0], data[1, 7, 0][0])
    assert torch.equal(data[1, 7, 0][0], data[1, 7, 0][0])


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
    whole = list(TrainingSampler(64, 8, seed=0))
    parts = [list(TrainingSampler(64, 8, seed=0, accumulate=2, processes=2, rank=rank)) for rank in (0, 1)]
    assert len(parts[0]) == 16
    for step, keys in enumerate(whole):
        shared = [parts[rank][2 * step + micro] for micro in (0, 1) for rank in (0, 1)]
        assert sum(shared, []) == keys  # noqa: RUF017 (short)


def test_repeated_samples_are_augmented_apart() -> None:
    keys = [key for batch in TrainingSampler(64, 8, seed=0, repeats=3) for key in batch]
    assert (
        len(keys) == len(set(keys)) == 64
    )  # an epoch is as long as without, and no augmentation comes twice
    assert [copy for _, _, copy in keys[:7]] == [0, 1, 2, 0, 1, 2, 0]
    assert len({index for _, index, _ in keys}) == 22
    data = SeededDataset(Points(64, 0.1), 3)
    assert not torch.equal(data[0, 7, 0][0], data[0, 7, 1][0])


def test_evaluation_sees_every_sample_once() -> None:
    keys = [key for rank in range(3) for batch in EvaluationSampler(10, 2, 3, rank) for key in batch]
    assert sorted(keys) == [(0, index, 0) for index in range(10)]
    assert [len(EvaluationSampler(10, 2, 3, rank)) for rank in range(3)] == [2, 2, 2]
