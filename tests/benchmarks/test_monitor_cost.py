"""benchmarks/monitor_cost.py; nothing is timed."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

COST = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "monitor_cost.py"))


@pytest.mark.recipe
def test_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def tiny(name: str, num_classes: int, **options: Any) -> torch.nn.Module:
        assert (name, options) == ("vit_small_patch16_224", {"img_size": 4})
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, num_classes))

    monkeypatch.setattr(timm, "create_model", tiny)
    run = COST["measure"]("vit_small_patch16_224", "cpu", 2, 4, 3)
    assert (run["every"], run["tensors"], run["parameters"]) == (50, 2, 49_000)
    assert run["hooks"]["plain"] == 0 < run["hooks"]["between"] < run["hooks"]["sampled"]
    seconds = run["seconds"]
    expected = (49 * seconds["between"] + seconds["sampled"]) / (50 * seconds["plain"]) - 1
    assert run["cost"] == pytest.approx(expected)
    monkeypatch.setattr(sys, "argv", ["cost"])
    text = COST["markdown"]({"machine": COST["machine"]("cpu", ["--batch", "2"]), "run": run})
    assert "`python cost --batch 2`" in text
    assert "\n| sampled | " in text
    assert "Cost of sampling every 50 steps: " in text


def test_bad_input_of_the_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert COST["main"](["--rounds", "0"]) == 2
    assert capsys.readouterr().err == "error: --rounds 0: must be at least 1\n"
