"""tests/tiers.py runs what fits, says what it left out, and allows for a slow machine."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
import tiers

TIMES = {
    "test": 400,
    "test-recipes": 300,
    "test-optim": 500,
    "test-sanitize": 10,
    "test-cuda-static": 10,
    "test-slow": 9000,
    "fault": 10,
}


def test_what_make_is_asked_for() -> None:
    assert tiers.command("test", TIMES, 0) == ["test"]
    assert tiers.command("test-optim", TIMES, 500) == ["test-optim"]
    assert tiers.command("test-optim", TIMES, 499) == []
    assert tiers.command("test-mutants", TIMES, 305)[:2] == ["test-mutants", "SAMPLE=30"]
    assert tiers.command("test-mutants", TIMES, 199) == []
    for tier in tiers.TIERS:
        assert tiers.command(tier, {}, math.inf) == [tier]


@pytest.mark.parametrize(
    ("slow", "left_out"),
    [
        (1, "test-slow"),
        (3, "test-optim, test-slow"),
        (9, "test-recipes, test-optim, test-sanitize, test-cuda-static, test-slow"),
    ],
)
def test_a_slow_machine(
    slow: int,
    left_out: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seconds = {"test": 400, "test-recipes": 300, "test-optim": 500}
    monkeypatch.setattr(tiers, "TIMES", tmp_path / "times.json")
    tiers.TIMES.write_text(json.dumps(TIMES))
    monkeypatch.setattr(tiers, "make", lambda target, *_: (True, slow * seconds.get(target, 10)))
    monkeypatch.setattr(sys, "argv", ["tiers.py", "--minutes", "45"])
    assert tiers.main() == 0
    out = capsys.readouterr().out
    assert f"left out, for want of time: {left_out}\n" in out or f": {left_out}, test-mutants\n" in out


def test_after_make_test_has_failed_nothing_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        tiers, "make", lambda *words: (not asked.append(words[0]) and words[0] != "test", 1.0)
    )
    monkeypatch.setattr(sys, "argv", ["tiers.py"])
    assert tiers.main() == 1
    assert asked == [".venv/.installed", "test"]
    assert "failed: test" in capsys.readouterr().out


def test_tiers_are_targets_with_a_time() -> None:
    makefile = (tiers.TIMES.parents[1] / "Makefile").read_text()
    assert {*tiers.TIERS} <= {*re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE)}
    assert {*json.loads(tiers.TIMES.read_text())} == {*tiers.TIERS} - {"test-mutants"} | {"fault"}
