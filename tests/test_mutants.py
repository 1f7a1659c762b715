"""tests/mutants.py: its list keeps up with the sources. `make test-mutants` plants the faults."""

from pathlib import Path

import mutants

ROOT = Path(__file__).resolve().parents[1]


def test_every_planted_fault_has_its_place() -> None:
    faults = [
        fault for some in (mutants.FAULTS, mutants.own_faults()) for list_ in some.values() for fault in list_
    ]
    assert len(faults) > 300
    assert mutants.misplaced(faults, ROOT) == []


def test_a_text_that_is_gone_or_there_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "rule.py").write_text("a b b")
    faults = [("one", "rule.py", "a", ""), ("two", "rule.py", "b", ""), ("none", "rule.py", "c", "")]
    assert mutants.misplaced(faults, tmp_path) == [
        "rule.py, 'two': the text is there 2 times: 'b'",
        "rule.py, 'none': the text is there 0 times: 'c'",
    ]
