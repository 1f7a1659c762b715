"""GLUE's metrics against numbers worked by hand and definitions in numpy, and where they are undefined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlp.glue.metrics import OF_CLASSES, OF_SCORES, compute

TRUTH = np.array([1, 1, 1, 0, 0, 0, 0, 1])
GIVEN = np.array([1, 1, 0, 0, 0, 1, 0, 0])  # 2 hits among 4 ones, 3 among 4 zeros


def test_worked_by_hand() -> None:
    """tp 2, fp 1, fn 2, tn 3."""
    found = compute(("accuracy", "f1", "matthews_correlation"), GIVEN, TRUTH)
    assert found["accuracy"] == pytest.approx(100 * 5 / 8)
    assert found["f1"] == pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 2))
    assert found["matthews_correlation"] == pytest.approx(100 * (2 * 3 - 1 * 2) / (3 * 4 * 4 * 5) ** 0.5)
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 10.0])
    found = compute(("pearson", "spearman"), x, y)
    assert found["pearson"] == pytest.approx(100 * 13 / (5 * 50) ** 0.5)  # sums of products of deviations
    assert found["spearman"] == pytest.approx(100 * (1 - 6 * 2 / (4 * 15)))  # two ranks are off by one


def test_three_classes() -> None:
    truth, guess = np.array([0, 1, 2, 2, 1, 0]), np.array([0, 2, 2, 2, 1, 1])
    assert compute(("accuracy",), guess, truth)["accuracy"] == pytest.approx(100 * 4 / 6)


CLASSES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)
SCORES = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(CLASSES)
def test_classes_against_their_definitions(pairs: list[tuple[int, int]]) -> None:
    guess, truth = np.array(pairs).T
    tp, tn = int((guess * truth).sum()), int(((1 - guess) * (1 - truth)).sum())
    fp, fn = int((guess * (1 - truth)).sum()), int(((1 - guess) * truth).sum())
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    found = compute(tuple(OF_CLASSES), guess, truth)
    assert found["accuracy"] == pytest.approx(100 * (tp + tn) / len(pairs))
    assert found["f1"] == pytest.approx(100 * 2 * tp / (2 * tp + fp + fn) if tp else 0)
    assert found["matthews_correlation"] == pytest.approx(
        100 * (tp * tn - fp * fn) / below**0.5 if below else 0
    )


@settings(max_examples=60, deadline=None)
@given(SCORES)
def test_scores_against_their_definitions(pairs: list[tuple[int, int]]) -> None:
    guess, truth = np.array(pairs, dtype=float).T

    def ranks(x: np.ndarray) -> np.ndarray:
        return np.array([(x < value).sum() + ((x == value).sum() - 1) / 2 for value in x])

    def correlation(x: np.ndarray, y: np.ndarray) -> float:
        x, y = x - x.mean(), y - y.mean()
        below = float(((x**2).sum() * (y**2).sum()) ** 0.5)
        return 100 * float((x * y).sum()) / below if below > 1e-9 else 0.0

    found = compute(tuple(OF_SCORES), guess, truth)
    assert found["pearson"] == pytest.approx(correlation(guess, truth), abs=1e-6)
    assert found["spearman"] == pytest.approx(correlation(ranks(guess), ranks(truth)), abs=1e-6)


@pytest.mark.parametrize(
    "same", [np.zeros(8), np.ones(8), np.full(8, 3.7), np.full(8, 1e8) + np.arange(8) * 1e-8]
)
def test_a_model_that_says_always_the_same(same: np.ndarray) -> None:
    """Its correlation has no definition; it is 0, without a warning (which would fail this test)."""
    for guess, truth in ((same, np.arange(8.0)), (np.arange(8.0), same)):
        assert compute(("pearson", "spearman"), guess, truth) == {"pearson": 0.0, "spearman": 0.0}
    if same[0] in (0, 1):
        assert compute(("matthews_correlation",), same, TRUTH) == {"matthews_correlation": 0.0}
        assert compute(("matthews_correlation",), TRUTH, same) == {"matthews_correlation": 0.0}
    assert compute(("f1",), np.zeros(8), TRUTH) == {"f1": 0.0}
    assert compute(("f1",), np.zeros(8), np.zeros(8)) == {"f1": 0.0}
