"""What `make demo` runs: both trainings, against the results that results/vision states."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from repro.ledger.rows import ROOT

IMAGE = 100 / 360  # percent of the test images
SLACK = 3 * IMAGE  # other processors and numbers of threads round differently


@pytest.mark.recipe
def test_both_trainings_reach_the_stated_accuracies_without_waiting(
    command: Callable[..., tuple[int, str, str]],
) -> None:
    assert "vision/train.py -m optimizer=adan,adamw" in (ROOT / "Makefile").read_text()
    status, _, err = command("-m", "optimizer=adan,adamw")
    assert status == 0, err
    for name in ("adan", "adamw"):
        made, stated = (
            json.loads((folder / "summary.json").read_text())
            for folder in (
                Path(f"runs/vision/optimizer={name}"),
                ROOT / "results" / "vision" / f"digits-{name}",
            )
        )
        assert made["final"]["test_accuracy"] >= stated["final"]["test_accuracy"] - SLACK
        assert made["wait_share"] < 0.1  # 0.02 on two quiet cores
