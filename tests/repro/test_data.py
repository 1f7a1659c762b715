"""The data pipeline is a pure function of (seed, epoch, index), whoever loads it."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import kstest
from torch import Tensor
from torch.utils.data import Subset
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
from repro.train.seeding import Draws


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
        shared = [parts[rank][2 * step + micro].places for micro in (0, 1) for rank in (0, 1)]
        assert np.concatenate(shared).tolist() == keys.places.tolist()


def test_repeated_samples_are_augmented_apart() -> None:
    batches = TrainingSampler(shuffled(64, 8, seed=0, repeats=3))
    places = np.concatenate([keys.places for keys in batches]).tolist()
    assert len(places) == len(set(places)) == 64  # as many as without, and no augmentation comes twice
    assert [place % 3 for place in places[:7]] == [0, 1, 2, 0, 1, 2, 0]
    assert len({place // 3 for place in places}) == 22
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
    shares = [[keys.places.tolist() for keys in part] for part in parts]
    assert shares == [[[1], [3], [6], [6]], [[2], [4, 5], [7], [7]]]


def test_streams_keep_their_places() -> None:
    """Index = segment * streams + stream: each process goes on with the streams it has."""
    plan = in_order(12, 4)
    parts = [list(TrainingSampler(plan, micro_batches=2, processes=2, rank=rank)) for rank in (0, 1)]
    assert [keys.places.tolist() for keys in parts[1]] == [[1], [3], [5], [7], [9], [11]]
    assert [list(step) for step in plan(0)] == [list(step) for step in plan(1)]


def test_batches_are_regrouped() -> None:
    batches = [[0, 1, 2], [3], [4, 5], [6, 7], [8]]
    plan = regrouped(batches, seed=1)
    assert sorted(plan(0)) == sorted(plan(1)) == sorted(batches)
    assert plan(0) == plan(0) != plan(1)


def test_measuring_sees_every_sample_once() -> None:
    keys = [batch for rank in range(3) for batch in keyed(dealt(10, 2, 3, rank))]
    assert {batch.epoch for batch in keys} == {0}
    assert sorted(np.concatenate([batch.places for batch in keys]).tolist()) == list(range(10))
    assert [len(dealt(10, 2, 3, rank)) for rank in range(3)] == [2, 2, 2]


class Numbers:
    """A data set in memory: of each sample its index and what it draws."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("samples are not made one by one")

    def whole_batch(self, indices: NDArray[np.int64], draws: Draws) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(indices), torch.from_numpy(draws([0, 3]))


def drawn(data: Any, sampler: TrainingSampler, repeats: int = 1) -> list[tuple[int, list[float]]]:
    """The samples of an epoch, and what each has drawn."""
    made = list(make_loader(data, sampler, 7, 2, repeats))
    return [(int(i), x.tolist()) for indices, numbers in made for i, x in zip(indices, numbers, strict=True)]


@pytest.mark.parametrize("repeats", [1, 3])
def test_whole_batches_have_the_samples_of_the_plan_and_numbers_of_their_own(repeats: int) -> None:
    plan = shuffled(22, 4, seed=1, repeats=repeats)
    sampler = TrainingSampler(plan)
    sampler.start_at(2)
    whole = drawn(Numbers(22), sampler, repeats)
    assert [index for index, _ in whole] == [place // repeats for step in plan(2) for place in step]
    assert len({tuple(numbers) for _, numbers in whole}) == len(whole)  # copies of a sample, too
    sampler.start_at(2, 3)
    assert drawn(Numbers(22), sampler, repeats) == whole[12:]
    shares = [TrainingSampler(plan, processes=2, rank=rank) for rank in (0, 1)]
    for share in shares:
        share.start_at(2)
    halves = [drawn(Numbers(22), share, repeats) for share in shares]
    assert sorted(sum(halves, [])) == sorted(whole)  # noqa: RUF017 (short)
    sampler.start_at(3)
    assert not {tuple(numbers) for _, numbers in drawn(Numbers(22), sampler, repeats)} & {
        tuple(numbers) for _, numbers in whole
    }


def test_whole_batches_of_a_subset() -> None:
    loader = make_loader(Subset(Numbers(9), [8, 2, 5]), keyed([[0, 2], [1]]), None, 0)  # type: ignore[arg-type]
    first, again = list(loader), list(loader)
    assert [indices.tolist() for indices, _ in first] == [[8, 5], [2]]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))  # fixed in evaluation


@given(st.text(max_size=5), st.lists(st.integers(0, 2**40), min_size=1, max_size=9, unique=True))
def test_draws_are_a_function_of_name_place_and_column(name: str, places: list[int]) -> None:
    numbers = Draws(name, np.array(places))(range(4))
    assert ((numbers >= 0) & (numbers < 1)).all()
    for row, place in zip(numbers, places, strict=True):
        alone = Draws(name, np.array([place]))
        assert alone([3, 1]).tolist() == [[row[3], row[1]]]
        assert alone([[2, 0]]).tolist() == [[row[2], row[0]]]
    assert not (numbers == Draws(name + "x", np.array(places))(range(4))).any()


def splitmix(state: int) -> int:
    """The next number of SplitMix64, as in Vigna's splitmix64.c."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_draws_are_those_of_splitmix64_and_uniform() -> None:
    assert splitmix(0) == 0xE220A8397B1DCDAF  # the published first number of seed 0
    draws = Draws("name", np.arange(500))
    seed = int(draws.seeds[3, 0])
    assert draws([1])[3, 0] == (splitmix((seed + 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53
    numbers = draws(range(40))
    for sample in (numbers.ravel(), numbers[:, 0], numbers[0]):
        assert kstest(sample, "uniform").pvalue > 1e-3
    for lag in (numbers[1:, 0], numbers[:-1, 1]):  # of neighbouring places and columns
        assert abs(np.corrcoef(numbers[: len(lag), 0], lag)[0, 1]) < 0.2
