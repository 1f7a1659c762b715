"""benchmarks/attention.py: what it counts, and its page. Speed is not tested."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "attention.py"))


def test_traffic(bench: dict[str, Any]) -> None:
    """Views are free, operations read and write."""
    x = torch.ones(10, 10)
    with bench["Traffic"]() as traffic:
        x.view(100)[10:].view(9, 10).t()
    assert traffic.bytes == 0
    with bench["Traffic"]() as traffic:
        x + x.t()
    assert traffic.bytes == 3 * 400


def test_page(
    bench: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All forms do the same products and agree; the fastest moves least."""
    monkeypatch.setitem(bench["markdown"].__globals__, "SHAPES", {"tiny": (2, 40, 80, 2, 8)})
    monkeypatch.setattr(sys, "argv", ["attention.py"])
    assert bench["main"](["--rounds", "2", "--out", str(tmp_path / "x")]) == 0
    assert "## tiny: 2 streams, 40 tokens that see 80, 2 heads of 8" in capsys.readouterr().out
    rows = json.loads((tmp_path / "x.json").read_text())["shapes"]["tiny"]["rows"]
    assert [row["form"] for row in rows] == ["textbook", "explicit", "fused"]
    assert max(row["error"] for row in rows) < 1e-5
    products = 3 * 3 * 2 * (2 * 2 * 40 * 80 * 8)
    assert rows[0]["gflop"] * 1e9 == pytest.approx(products)
    assert rows[1]["gflop"] * 1e9 == pytest.approx(products, rel=0.06)  # and the empty column
    assert rows[1]["mb"] < rows[0]["mb"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--device", "cuda"], "torch finds no CUDA GPU"),
    ],
)
def test_one_line(
    bench: dict[str, Any], words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert bench["main"](words) == 2
    assert line in capsys.readouterr().err
