"""benchmarks/input.py on a made-up set: what is in the result, not how fast anything is."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import input
from repro import hardware
from repro.ledger import rows

STEPS = [
    "read",
    "decode",
    "RandomResizedCropAndInterpolation",
    "RandomHorizontalFlip",
    "RandAugment",
    "to_uint8",
]
FAST = ["--images", "8", "--batch", "4", "--seconds", "0.01", "--rounds", "1", "--workers", "0", "1"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of ten training and two validation images."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 5), ("val", 1)):
        for name in ("a", "b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{index}.jpg")
    return tmp_path / "data"


@pytest.mark.recipe
def test_result(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/input.py"])
    out = tmp_path / "results" / "input"
    more = ["--shorter-side", "64", f"--out={out}", "--measure-training", "--train-batch=2", "model=vit_mini"]
    assert input.main([f"data.root={root}", "data.size=32", *FAST, *more]) == 0
    result = json.loads(out.with_suffix(".json").read_text())
    assert list(result["stages_us"]) == [*STEPS, "seeding", "collate"]
    assert result["sample"]["images"] == 8
    assert result["sample"]["mean_pixels"] == 64 * 80
    assert [(row["images"], row["workers"]) for row in result["loader"]] == [
        (source, workers) for workers in (0, 1) for source in ("folder", "shards")
    ]
    numbers = [row["per_second"] for part in ("loader", "storage") for row in result[part]]
    assert all(
        number > 0 for number in [*numbers, result["measured"]["per_second"], *result["stages_us"].values()]
    )
    row = rows.load("imagenet/vit_s_150_i").row
    assert row.cost is not None
    expected = 0.25 * 989e12 / (3 * row.cost.forward_flops)
    assert (hardware.UTILISATION, result["training"]["per_second"]) == (0.25, pytest.approx(expected))
    assert result["per_core"] == result["loader"][2]["per_second"]
    assert result["cores_for_gpu"] == math.ceil(expected / result["per_core"])
    text = out.with_suffix(".md").read_text()
    assert f"so {result['cores_for_gpu']} such cores keep the GPU busy" in text
    assert f"`python benchmarks/input.py data.root={root} data.size=32" in text


def test_training_can_be_given(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--workers", "0", "--images", "4", "--batch", "2", "--seconds", "0.01", "--rounds", "1"]
    assert input.main([f"data.root={root}", "--row=imagenet/resnet50_100", "--training=1e6", *small]) == 0
    assert "Training on one H100: 1000000 images/s (--training)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.root=/no/where"], "data.root=/no/where: no such folder"),
        (["--row=imagenet/vit_s"], "imagenet/vit_s: no such row"),
        (["--images=4"], "--images 4: must be at least --batch 64"),
        (["--train-batch=0"], "--train-batch 0: must be at least 1"),
        (["data=digits"], "keeps pixels, not image files"),
    ],
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert input.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
