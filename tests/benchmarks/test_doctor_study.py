"""benchmarks/doctor.py: its page, and a run with a planted fault."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import doctor
from benchmarks.doctor_faults import HEALTHY, PLANTS
from repro.doctor.causes import CAUSES


def outcome(name: str, planted: str, named: str, *also: str) -> dict[str, Any]:
    return {"name": name, "planted": planted, "named": named, "evidence": "", "also": list(also)}


def test_page() -> None:
    about = {
        "command": "python benchmarks/doctor.py",
        "commit": "abc",
        "device": "cpu",
        "cpu": "a CPU",
        "threads": 1,
        "torch": "2",
        "python": "3",
    }
    text = doctor.describe(
        [
            outcome("a", "lr_too_high", "lr_too_high"),
            outcome("b", "lr_too_high", "warmup_too_short", "lr_too_high"),
            outcome("healthy digits", "healthy", "healthy"),
            outcome("released/NLP/x", "healthy", "data_repeats"),
            outcome("released/CV/y", "healthy", "healthy"),
        ],
        about,
    )
    assert "Planted faults named right: 1 of 2, 50.0%." in text
    assert "| lr too high | 2 | 1 | 2 | warmup too short 1 |" in text
    assert "| together | 2 | 1 | 50.0% |" in text
    assert "| chosen with | 1 | 0 | 0.0% |" in text
    assert "* released/NLP/x: data repeats" in text


def test_each_cause_is_planted_at_least_four_times() -> None:
    planted = [plant.cause for plant in PLANTS]
    assert {cause: planted.count(cause) >= 4 for cause in CAUSES} == dict.fromkeys(CAUSES, True)
    names = [plant.name for plant in (*PLANTS, *HEALTHY)]
    assert len(set(names)) == len(names)
    assert all(plant.cause is None for plant in HEALTHY)


@pytest.mark.recipe
def test_planted_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"--out={tmp_path / 'out'}", f"--runs={tmp_path / 'runs'}", "--only=dead_gradients lstm"]
    for _ in range(2):  # the second time there is nothing left to do
        assert doctor.main(arguments) == 0
        assert re.search(r"^dead gradients( +2){3}$", capsys.readouterr().out, re.M)
    lines = (tmp_path / "out" / doctor.OUTCOMES).read_text().splitlines()
    assert [json.loads(line)["named"] for line in lines] == ["dead_gradients"] * 2
