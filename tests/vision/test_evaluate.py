"""vision/evaluate.py: the numbers of training again, of files of other writers, and over two processes."""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from scipy.stats import norm
from tiny import TINY

from repro.train.renamed import RENAMED
from vision.evaluate import main
from vision.predictions import by_class, measure

Command = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def evaluate(command: Command, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run vision/evaluate.py in an empty folder; returns (exit status, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(list(arguments))
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of five noisy test images each, and a training image each."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 1), ("val", 5)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "images"


def results(path: str = "x.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


def test_a_run_is_measured_as_in_training(command: Command, evaluate: Command) -> None:
    assert command(*TINY, "ema_decay=0.9", "run.name=x")[0] == 0
    record = json.loads(Path("runs/vision/x/metrics.jsonl").read_text().splitlines()[-1])
    step = next(Path("runs/vision/x/checkpoints").iterdir())
    config = Path("runs/vision/x/config.yaml")  # as one that was written before its keys were renamed
    text = config.read_text()
    for old, new in RENAMED.items():
        text = re.sub(rf"^( *){new.rpartition('.')[2]}:", rf"\1{old.rpartition('.')[2]}:", text, flags=re.M)
    assert text != config.read_text()
    config.write_text(text)
    for arguments, kind in (
        (["runs/vision/x"], "ema_"),
        ([str(step), "--weights=model", "batch_size=7"], ""),
        ([str(step / "ema.safetensors"), "batch_size=360", "run.root=elsewhere"], "ema_"),
    ):
        status, out, err = evaluate(*arguments, "--json=x.json", "--out=x.csv", "--classes=c.parquet")
        assert (status, err) == (0, "")
        found = results()
        assert found["images"] == 360
        image = 100.1 / 360  # rounding depends on the batch and may decide between two classes
        assert found["test_accuracy"] == pytest.approx(record[f"{kind}test_accuracy"], abs=image)
        assert found["test_top5"] == pytest.approx(record[f"{kind}test_top5"], abs=image)
        assert found["test_loss"] == pytest.approx(record[f"{kind}test_loss"], rel=1e-5)
        assert f"top-1       {found['test_accuracy']:.3f} %" in out
        lines, classes = pd.read_csv("x.csv"), pd.read_parquet("c.parquet")
        assert 100 * (lines["prediction"] == lines["label"]).mean() == pytest.approx(found["test_accuracy"])
        shares = classes["images"] / classes["images"].sum()
        assert (shares * classes["accuracy"]).sum() == pytest.approx(found["test_accuracy"])


@pytest.mark.recipe
def test_bf16_is_measured_on_request(command: Command, evaluate: Command) -> None:
    assert command(*TINY, "amp=bf16", "run.name=x")[0] == 0
    losses = []
    for amp in ([], ["amp=bf16"], ["amp=no"]):
        assert evaluate("runs/vision/x", "--json=x.json", *amp)[0] == 0
        losses.append(results()["test_loss"])
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.recipe
def test_a_checkpoint_of_timm_says_all_but_where_the_images_are(evaluate: Command, images: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=2).eval()
    args = argparse.Namespace(model="test_resnet", crop_pct=0.8, img_size=32, mean=None, std=None, gp=None)
    torch.save(
        {"epoch": 3, "arch": "test_resnet", "version": 2, "state_dict": model.state_dict(), "args": args},
        "last.pth.tar",
    )
    root = f"data.root={images}"
    status, out, err = evaluate("last.pth.tar", root, "--json=x.json", "--out=x.csv")
    assert (status, err) == (0, "")
    known = timm.get_pretrained_cfg("test_resnet")
    found = results()
    assert (found["size"], found["crop_pct"], found["mean"]) == (32, 0.8, list(known.mean))
    assert "top-5" not in out
    paths = [images / "val" / name / f"{i}.png" for name in ("cat", "dog") for i in range(5)]
    transform = timm.data.create_transform((3, 32, 32), crop_pct=0.8, mean=known.mean, std=known.std,
                                           interpolation=known.interpolation)  # fmt: skip
    with torch.no_grad():
        logits = torch.cat([model(transform(Image.open(path))[None]) for path in paths])
    lines = pd.read_csv("x.csv")
    assert lines["prediction"].tolist() == logits.argmax(1).tolist()
    torch.testing.assert_close(torch.tensor(lines["probability"]).float(), logits.softmax(1).amax(1))
    assert evaluate("last.pth.tar", root, "data.crop_pct=1", "--json=x.json")[0] == 0
    assert results()["crop_pct"] == 1
    torch.save(model.state_dict(), "bare.pth")
    assert evaluate("bare.pth", root, "model.name=test_resnet", "data.size=32", "--json=x.json")[0] == 0
    assert results()["crop_pct"] == known.crop_pct


@pytest.mark.recipe
def test_beside_the_published_value(command: Command, evaluate: Command) -> None:
    assert command(*TINY, "run.name=x")[0] == 0
    shutil.copy(next(Path("runs/vision/x/checkpoints").iterdir()) / "model.safetensors", "x.safetensors")
    row, small = "--row=imagenet/vit_s_150_i", ["data=digits", "model=vit_mini", *TINY[2:]]
    status, out, err = evaluate("x.safetensors", row, *small, "--json=x.json")
    assert (status, err) == (0, "")
    found = results()
    assert (found["row"], found["published"]) == ("imagenet/vit_s_150_i", 80.1)
    assert found["difference"] == pytest.approx(found["test_accuracy"] - 80.1)
    assert "80.1 % (imagenet/vit_s_150_i): -" in out
    assert "outside the interval" in out
    status, out, _ = evaluate("x.safetensors", row, *small, "+proxy=vit")
    assert "80.1" not in out  # a proxy is not compared with the paper


def test_what_cannot_be_measured(command: Command, evaluate: Command, images: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), "x.pth")
    root = f"data.root={images}"
    for arguments, message in (
        (["/none"], "cannot read /none: no such file or folder"),
        (["x.pth", root], r"x.pth does not say which model of timm it is: add --row ROW or model.name=NAME"),
        (["x.pth", root, "model.name=test_resnet"], "its fc.weight has shape [3, 96], here it is [2, 96]"),
        (["x.pth", root, "model.name=test_resnet", "--weights=ema"], "has no averaged weights"),
        (["x.pth", "--row=mae/base_pretrain"], "--row mae/base_pretrain: it is not a classifier of images"),
        (["x.pth", "--row=imagenet/none"], "imagenet/none: no such row"),
        (
            ["x.pth", root, "model.name=test_resnet", "batchsize=3"],
            "batchsize: no such key; did you mean batch_size?",
        ),
        (["x.pth", "--json=none/x.json"], "none/x.json: there is no folder none"),
    ):
        status, _, err = evaluate(*arguments)
        assert (status, len(err.splitlines())) == (2, 1), err
        assert message in err
    assert command(*TINY, "run.name=x")[0] == 0
    status, _, err = evaluate("runs/vision/x", "nope=1")
    assert status == 2
    assert "nope" in err


def test_the_interval_is_wilsons() -> None:
    table = pd.DataFrame({"label": [0] * 500, "prediction": [0] * 400 + [1] * 100, "top5": True, "loss": 1.0})
    found = measure(table)
    z, p, n = norm.ppf(0.975), 0.8, 500
    middle, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    bounds = [100 * (middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
    assert [found["low"], found["high"]] == pytest.approx(bounds)
    lines = by_class(table, ["a", "b"])
    assert lines["images"].tolist() == [500, 0]
    assert lines["accuracy"][0] == 80
    assert lines["taken_for"][0] == "b"


@pytest.mark.slow
def test_two_processes_count_every_image_once(command: Command, evaluate: Command) -> None:
    assert command(*TINY, "run.name=x")[0] == 0
    assert evaluate("runs/vision/x", "--json=x.json", "--out=x.csv")[0] == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    script = [str(ROOT / "vision" / "evaluate.py"), "runs/vision/x", "batch_size=14"]
    subprocess.run([*launch, *script, "--json=y.json", "--out=y.csv"], check=True, capture_output=True)
    one, two = results("x.json"), results("y.json")
    assert [two[key] for key in ("images", "test_accuracy")] == [
        one[key] for key in ("images", "test_accuracy")
    ]
    assert two["test_loss"] == pytest.approx(one["test_loss"], rel=1e-5)
    pd.testing.assert_frame_equal(pd.read_csv("x.csv"), pd.read_csv("y.csv"), rtol=1e-4)
