"""The rule of tracking on synthetic curves."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from repro.ledger.verdict import VERDICTS, Curve, VerdictState, worst

POSITIONS = np.arange(1.0, 101.0)
ERRORS = 10 / POSITIONS**0.5


def curve(errors: Sequence[float] = ERRORS, perfect: float | None = None, tolerance: float = 0.01) -> Curve:
    errors = np.asarray(errors, float)
    return Curve("loss", "nats", "epoch", np.arange(1.0, len(errors) + 1), errors, perfect, tolerance)


def replay(errors: Sequence[float], released: Curve | None = None) -> list[str]:
    released, memory = released or curve(), VerdictState()
    found = []
    for position, error in zip(released.positions, errors, strict=False):
        expected = released.at(position)
        assert expected is not None
        found.append(VERDICTS[memory.judge(expected, float(error))])
    return found


def test_a_curve_is_on_its_own_track() -> None:
    assert set(replay(ERRORS)) == {"on track"}


def test_the_range_is_of_what_lies_nearby() -> None:
    errors = list(range(200, 0, -1))  # at position p: 201 - p
    released = curve(errors, tolerance=0.0)
    near = released.at(100)  # 2 % of 200 are 4 records, less than 10 % of the position
    assert near is not None
    assert (near.released, near.low, near.high) == (101, 97, 105)
    early = released.at(2)  # 10 % of the position are less than a record
    assert early is not None
    assert (early.low, early.high) == (198, 200)
    between = released.at(2.5)
    assert between is not None
    assert (between.released, between.low, between.high) == (198.5, 198, 199)
    first, last = released.at(1), released.at(200)
    assert first is not None
    assert last is not None
    assert (first.low, first.high) == (199, 200)
    assert (last.low, last.high) == (1, 5)
    assert released.at(0.5) is None
    assert released.at(200.5) is None


def test_the_tolerance_widens_the_range() -> None:
    flat = [5.0] * 30
    assert set(replay([5.049] * 30, curve(flat))) == {"on track"}
    assert replay([5.051] * 30, curve(flat))[-1] == "behind"
    assert set(replay([4.951] * 30, curve(flat))) == {"on track"}
    assert replay([4.949] * 30, curve(flat))[-1] == "ahead"


def test_three_records_in_a_row_must_agree() -> None:
    errors = ERRORS.copy()
    errors[[20, 22, 23, 50, 51, 52, 53]] *= 1.5
    found = replay(errors)
    assert [index for index, verdict in enumerate(found) if verdict == "behind"] == [52, 53]
    assert set(found) == {"on track", "behind"}


def test_good_and_bad_records_in_turn_are_noise() -> None:
    errors = ERRORS * np.where(POSITIONS % 2, 1.3, 0.7)
    assert set(replay(errors)) == {"on track"}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_diverged_at_once_and_forgotten_slowly(bad: float) -> None:
    errors = ERRORS.copy()
    errors[10] = bad
    found = replay(errors)
    assert found[10] == "diverged"
    assert set(found[:10]) == set(found[11:]) == {"on track"}
    assert replay([bad])[0] == "diverged"  # from the first record on


def test_an_error_that_rises_again_is_diverged() -> None:
    errors = ERRORS.copy()
    errors[50:] = 9  # of 10 at first, and 1.4 before
    found = replay(errors)
    assert found[49:53] == ["on track", "on track", "on track", "diverged"]
    errors[50:] = 3
    assert set(replay(errors)[52:]) == {"behind"}


def test_a_run_that_learns_nothing_is_behind_not_diverged() -> None:
    found = replay(np.full(100, 10.0))
    assert "diverged" not in found
    assert found.index("behind") < 6


def test_an_accuracy_is_what_it_lacks() -> None:
    accuracy = curve(100 - ERRORS, 100.0)
    assert accuracy.error(80.0) == 20.0
    assert accuracy.error(accuracy.error(80.0)) == 80.0


def test_of_several_columns_the_worst_counts() -> None:
    assert worst([0, 1, -1]) == 1
    assert worst([1, 2, 0]) == 2
    assert worst([0, -1]) == -1
    assert worst([0, 0]) == worst([]) == 0
