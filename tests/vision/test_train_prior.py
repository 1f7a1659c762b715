"""The text-to-image model of the embedded world: its words, pictures and loss, and the recipe end to end."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from repro.interop import read_weights
from repro.train.cli import CONFIGS
from repro.train.seeding import Draws
from vision.threed.cameras import Cameras
from vision.threed.captions import CAPTIONS
from vision.threed.diffusion import Diffusion, features, texts
from vision.threed.prior_config import TrainPriorConfig
from vision.threed.shapes import render
from vision.train_prior import PICTURE, PIPELINE, VIEWS, Batch, TrainPrior, main, make_tokenizer

Command = Callable[..., tuple[int, str, str]]

TINY = [
    "epochs=2", "batch_size=32", "schedule.warmup_epochs=0", "data={size: 8, views: 1, valid_views: 1}",
    "model={channels: [8, 16], heads: 2, text_width: 16, text_layers: 1}", "sample_steps=2", "ema_decay=0.9",
]  # fmt: skip


def configure(*overrides: str) -> TrainPriorConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_object(compose("train_prior", list(overrides)))
    assert isinstance(config, TrainPriorConfig)
    return config


@pytest.fixture
def command(runner: Callable[..., Command]) -> Command:
    """Run vision/train_prior.py in an empty folder; returns (exit status, stdout, stderr)."""
    return runner(main)


def test_words_are_tokens() -> None:
    """Each word and comma of captions and views is one; anything else is spelt, and nothing is unknown."""
    tokenizer = make_tokenizer(16)
    views = ["front view", "side view", "back view", "overhead view"]
    words = {word for text in (*CAPTIONS, *views) for word in text.split()} | {","}
    for word in words:
        assert len(tokenizer(word).input_ids) == 3, word
    text = "a small red torus, overhead view"
    assert (
        tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
        == "a small red torus , overhead view"
    )
    spelt = tokenizer("zebra 7 é").input_ids
    assert tokenizer.unk_token_id not in spelt[1:-1]
    assert max(spelt) < len(tokenizer)


def test_pictures_and_what_is_told_of_them() -> None:
    """Renders of the captions from random cameras; shares of them without a view and without a caption."""
    task = TrainPrior(configure(*TINY, "data.views=16", "caption_dropout=0.25", "view_dropout=0.5"))
    data: Any = task.train_data()
    assert len(data) == 16 * 128
    batch = data.whole_batch(np.arange(len(data)), Draws("x", np.arange(len(data))))
    assert all(torch.equal(x, y[7]) for x, y in zip(data[7], batch, strict=True) if x.dtype == torch.uint8)
    azimuth, elevation = torch.atan2(data.features[:, 0], data.features[:, 1]), data.features[:, 2].asin()
    assert -10.001 < elevation.rad2deg().min() < -5
    assert 55 < elevation.rad2deg().max() < 60.001
    cameras = Cameras(azimuth, elevation, torch.full_like(azimuth, 3), torch.full_like(azimuth, 40).deg2rad())
    captions = [caption for caption in CAPTIONS for _ in range(16)]
    error = batch.images / 255 - render(captions, cameras, 8)[:, :3]
    assert error.abs().mean() < 0.005
    told = texts(captions, cameras)
    kinds = [0, 0, 0]
    for tokens, view, caption, everything, own in zip(
        batch.tokens, batch.views, captions, told, features(cameras), strict=True
    ):
        text = re.sub(r" , ", ", ", task.tokenizer.decode(tokens, skip_special_tokens=True))
        kind = ["", caption, everything].index(text)
        kinds[kind] += 1
        torch.testing.assert_close(view, own * (kind == 2), rtol=0, atol=1e-4)
    np.testing.assert_allclose(np.array(kinds) / len(data), [0.25, 0.5, 0.25], atol=0.05)
    valid: Any = task.valid_data()
    everything = valid.whole_batch(np.arange(128), Draws("x", np.arange(128)))
    assert (everything.views[:, 3] == 1).all()
    assert not torch.equal(everything.images, data.images[::16])


class Blind(nn.Module):
    """Finds nothing, and keeps what it was given."""

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor, views: Tensor) -> Tensor:
        self.noisy, self.times = noisy, times
        return torch.zeros_like(noisy)


def test_the_loss_is_the_error_of_the_velocity() -> None:
    """Time steps are spread evenly; the measure depends on the pictures' numbers, and on nothing else."""
    task = TrainPrior(configure(*TINY))
    data: Any = task.valid_data()
    batch = task.move(data.whole_batch(np.arange(64), Draws("x", np.arange(64))), torch.device("cpu"))
    assert batch.images.dtype == torch.float32
    assert (batch.images.min() < -0.5, batch.images.max()) == (True, 1)
    model = Blind()
    torch.manual_seed(0)
    loss = task.loss(model, batch)
    assert (model.times.diff().float() - 1000 / 64).abs().max() < 1
    alphas = task.alphas[model.times].view(-1, 1, 1, 1)
    noise = (model.noisy - alphas.sqrt() * batch.images) / (1 - alphas).sqrt()
    assert noise[3:].std().item() == pytest.approx(1, abs=0.05)
    velocity = task.scheduler.get_velocity(batch.images, noise, model.times)
    torch.testing.assert_close(loss, velocity.square().mean(), rtol=1e-3, atol=0)
    whole, size = task.evaluate(model, batch)
    parts = [task.evaluate(model, Batch(*(x[part] for x in batch)))[0] for part in (slice(40), slice(40, 64))]
    assert size == 64
    torch.testing.assert_close(whole["valid_loss"], parts[0]["valid_loss"] + parts[1]["valid_loss"])
    moved, _ = task.evaluate(model, batch._replace(indices=batch.indices + 1))
    assert not torch.isclose(whole["valid_loss"], moved["valid_loss"])


@pytest.mark.recipe
def test_end_to_end(command: Command) -> None:
    """It learns, saves a pipeline that is a prior, and a picture; both are made again if they are gone."""
    arguments = [*TINY, "epochs=6", "run.name=x", "optimizer.lr=0.01", "schedule=constant"]
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert "best" in out
    folder = Path("runs/train_prior/x")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [record["valid_loss"] for record in records if "valid_loss" in record]
    assert losses[-1] < 0.8 * losses[0]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best"]["ema_valid_loss"] == min(record["ema_valid_loss"] for record in records)
    with Image.open(folder / PICTURE) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    parts = np.array_split(pixels, 2 * VIEWS, axis=1)
    assert all((np.ptp(part, axis=2) > 60).any() for part in parts)  # something in colour in each column
    drawn = (folder / PICTURE).read_bytes()
    (folder / PICTURE).unlink()
    assert "is finished" in command(*arguments)[1]
    assert (folder / PICTURE).read_bytes() == drawn

    prior = Diffusion.load(str(folder / PIPELINE))
    weights = read_weights(folder, "ema")[0]
    ours = {f"unet.{name}": x for name, x in prior.unet.state_dict().items()}
    assert all(torch.equal(x, weights[name]) for name, x in ours.items())
    task = TrainPrior(configure(*TINY))
    model = task.build_model().eval()
    model.load_state_dict(weights)
    data: Any = task.valid_data()
    batch = task.move(data.whole_batch(np.arange(4), Draws("x", np.arange(4))), torch.device("cpu"))
    times = torch.tensor([10, 300, 600, 900])
    with torch.no_grad():
        velocity = model(batch.images, times, batch.tokens, batch.views)
    alphas = task.alphas[times].view(-1, 1, 1, 1)
    expected = alphas.sqrt() * velocity + (1 - alphas).sqrt() * batch.images
    azimuth, elevation = torch.atan2(batch.views[:, 0], batch.views[:, 1]), batch.views[:, 2].asin()
    cameras = Cameras(azimuth, elevation, torch.ones(4), torch.ones(4))
    found = prior.noise(batch.images, times, CAPTIONS[:4], cameras)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(prior.alphas, task.alphas)


@pytest.mark.recipe
def test_a_killed_run_goes_on_to_the_same_bits(
    command: Command, killed_after: Callable[[int], AbstractContextManager[None]]
) -> None:
    words = [*TINY, "run.checkpoint_every=1"]
    assert command(*words, "run.name=whole")[0] == 0
    with killed_after(6):
        assert command(*words, "run.name=killed")[0] == 130
    status, out, _ = command(*words, "run.name=killed")
    assert status == 0
    assert "continuing runs/train_prior/killed at step 6" in out
    folders = [Path("runs/train_prior") / name for name in ("whole", "killed")]
    for file in ("metrics.jsonl", PICTURE, f"{PIPELINE}/unet/diffusion_pytorch_model.safetensors"):
        whole, parts = ((folder / file).read_bytes() for folder in folders)
        assert whole == parts, file


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("model.channels=[16]", "model.channels=[16]: must be two or more multiples of 8"),
        ("model.channels=[16,20]", "model.channels=[16, 20]: must be two or more multiples of 8"),
        ("model.heads=3", "model.heads=3: must divide 16, the width of model.channels"),
        ("model.text_width=18", "model.heads=4: must divide 18, the width of model.text_width"),
        ("model.text_tokens=4", "model.text_tokens=4: must be at least 12"),
        ("data.size=9", "data.size=9: must be divisible by 2, for 1 halvings"),
        ("data.views=0", "data.views=0: must be at least 1"),
        ("data.fov=[40,30]", "data.fov=[40.0, 30.0]: must be two numbers from 1 to 120, the lower one first"),
        ("data.radius=[1,2]", "data.radius=[1.0, 2.0]: must be two numbers from 1.5 to inf"),
        ("caption_dropout=0.95", "caption_dropout=0.95, view_dropout=0.1: are shares of the pictures"),
        ("batch_size=200", "batch_size=200: the training set has only 128 images"),
        ("optimizer=sophia", "optimizer=sophia: the recipe train_prior has no class scores"),
    ],
)
def test_one_line(command: Command, argument: str, line: str) -> None:
    heads = "model.heads=4"
    status, _, err = command(*TINY, heads, argument)
    assert status == 2
    assert line in err
    assert err.count("\n") == 1
