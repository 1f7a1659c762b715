"""pass@k and its interval."""

import math
from itertools import combinations

import numpy as np
import pytest

from llm.code_eval.pass_at_k import estimate, pass_at_k
from repro.errors import UserError


@pytest.mark.parametrize("samples", [1, 4, 7])
def test_it_is_the_share_of_subsets_that_have_a_correct_sample(samples: int) -> None:
    for correct in range(samples + 1):
        for k in range(1, samples + 1):
            subsets = list(combinations([1] * correct + [0] * (samples - correct), k))
            assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_many_samples() -> None:
    for correct in (0, 1, 17, 100, 199, 200):
        for k in (1, 10, 100, 200):
            exact = 1 - math.comb(200 - correct, k) / math.comb(200, k)
            assert pass_at_k(200, correct, k) == pytest.approx(exact, abs=1e-12)
    assert 0 < pass_at_k(100_000, 1, 1) == pytest.approx(1e-5)


def test_the_interval_has_the_mean_in_95_of_100_cases() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for case in range(200):
        counts = [(10, int(generator.binomial(10, generator.beta(1, 2)))) for _ in range(60)]
        value, low, high = estimate(counts, 1, seed=case, resamples=400)
        assert low < value < high
        assert high - low < 0.25
        inside += low <= 1 / 3 <= high
    assert 180 <= inside <= 198


def test_the_interval_depends_on_the_seed_alone() -> None:
    counts = [(4, 1), (4, 3), (2, 0)]
    assert estimate(counts, 2, seed=1) == estimate(counts, 2, seed=1)
    assert estimate(counts, 2)[0] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert estimate([(3, 3), (3, 3)], 1) == (1.0, 1.0, 1.0)


def test_what_cannot_be_estimated() -> None:
    with pytest.raises(UserError, match="pass@11 cannot be estimated from 10 samples"):
        pass_at_k(10, 3, 11)
    with pytest.raises(UserError, match="pass@0 "):
        pass_at_k(10, 3, 0)
    with pytest.raises(UserError, match="pass@3 "):
        estimate([(5, 1), (2, 2)], 3)
    with pytest.raises(UserError, match="no task"):
        estimate([], 1)
    with pytest.raises(ValueError, match="5 of 4"):
        pass_at_k(4, 5, 1)
