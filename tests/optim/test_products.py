"""The covering part of a product of parameters has all that products.py says, and is small."""

import itertools
from pathlib import Path

import pytest
from harness import NAMES, PATHS
from products import beyond_covering

import adan_optim

OPTIONS = range(6)


class Case:
    """As much of a test as is looked at."""

    path, originalname = Path("test_file.py"), "test"

    def __init__(self, params, marks):
        self.callspec, self.marks = self, marks
        self.params, self.name = params, f"test[{params}]"

    def iter_markers(self, name):
        return (mark for mark in self.marks if mark.name == name)

    def get_closest_marker(self, name):
        return next(self.iter_markers(name), None)


def covering(*marks):
    """(optimizer, path, option, flag) of what is left of all combinations."""
    product = itertools.product(PATHS, OPTIONS, (True, False))
    cases = [
        Case(dict(name=name, path=path, option=option, flag=flag), [mark.mark for mark in marks])
        for (name, path), option, flag in product
    ]
    left_out = [*beyond_covering(cases)]
    return {tuple(case.params.values()) for case in cases if case not in left_out}


def family(name):
    return adan_optim.CARDS[name].elementwise, adan_optim.CARDS[name].previous


FAMILIES = {(family(name), path) for name, path in PATHS}


def test_every_optimizer_on_every_path_and_every_value_for_each_family():
    part = covering()
    assert {case[:2] for case in part} == {*PATHS}
    for place, values in ((2, OPTIONS), (3, (True, False))):
        shown = {(family(case[0]), case[1], case[place]) for case in part}
        assert shown == {(*one, value) for one in FAMILIES for value in values}
    assert {case[1:] for case in part} == {
        *itertools.product({path for _, path in PATHS}, OPTIONS, (True, False))
    }
    assert len(part) < len(PATHS) * len(OPTIONS) * 2 / 3


def test_what_a_test_names_is_complete():
    part = covering(pytest.mark.every("name", "option"))
    assert {case[:3] for case in part} == {(*one, option) for one in PATHS for option in OPTIONS}


def test_one_optimizer_can_stand_for_its_family():
    part = covering(pytest.mark.per_family)
    assert {(family(case[0]), case[1]) for case in part} == FAMILIES
    assert len(part) < len(covering())


def test_others_are_left_alone():
    others = [Case(dict(size=size), []) for size in range(9)]
    slow = [
        Case(dict(name=name, path="reference"), [pytest.mark.slow.mark]) for name in NAMES for _ in range(2)
    ]
    assert not [*beyond_covering([*others, *slow])]
