"""What `make demo` runs: both trainings."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from repro.ledger.rows import ROOT

ENOUGH = 95  # percent; results/vision has 98 to 99, and an image is 0.28


@pytest.mark.recipe
def test_both_trainings_of_the_demo_learn(command: Callable[..., tuple[int, str, str]]) -> None:
    assert "vision/train.py -m optimizer=adan,adamw" in (ROOT / "Makefile").read_text()
    status, _, err = command("-m", "optimizer=adan,adamw")
    assert status == 0, err
    for name in ("adan", "adamw"):
        summary = json.loads(Path(f"runs/vision/optimizer={name}/summary.json").read_text())
        assert summary["final"]["test_accuracy"] >= ENOUGH
