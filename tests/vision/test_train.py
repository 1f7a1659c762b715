"""vision/train.py end to end, and every configuration file."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import language_options
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tiny import TINY

import adan_optim
from repro.train.cli import CONFIGS
from vision.config import VisionConfig
from vision.data import test_transform as evaluation_transform
from vision.data import train_transform
from vision.train import Classification

Command = Callable[..., tuple[int, str, str]]


def configure(*overrides: str) -> VisionConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_object(compose("vision", list(overrides)))
    assert isinstance(config, VisionConfig)
    return config


def options(group: str) -> list[str]:
    return language_options.options(group, language=False)


@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("name", options("optimizer"))
def test_optimizer_configs(name: str) -> None:
    """Each is the optimizer that its name says, and a few steps get somewhere: matrices and vectors alike."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    optimizer = adan_optim.build_optimizer(model, configure(f"optimizer={name}").optimizer)
    assert type(optimizer).__name__.lower() == name.removesuffix("8bit").removeprefix("apex_").replace(
        "_", ""
    )
    before = [p.detach().clone() for p in model.parameters()]
    x, losses = torch.randn(32, 4), []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append((model(x) - x[:, :1]).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert not any(map(torch.equal, before, model.parameters()))
    if name.endswith("8bit"):
        assert optimizer.param_groups[0]["state_dtype"] == "int8"


@pytest.mark.recipe
@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("name", options("optimizer"))
def test_optimizers_train(command: Command, name: str) -> None:
    """On the digits, with its own learning rate: the loss of the second epoch is below that of the first."""
    arguments = [*TINY, f"optimizer={name}", "run.name=x", "epochs=2", "schedule=constant"]
    assert command(*arguments)[0] == 0
    first, last = map(json.loads, Path("runs/vision/x/metrics.jsonl").read_text().splitlines())
    assert last["train_loss"] < first["train_loss"]
    assert "is finished" in command(*arguments)[1]


@pytest.mark.recipe
def test_sophia_gets_its_estimates(command: Command) -> None:
    """Every `hessian_every` steps."""
    tiny = [*TINY, "optimizer=sophia"]
    losses = []
    for every in (5, 1000):
        assert command(*tiny, f"hessian_every={every}", f"run.name=x{every}")[0] == 0
        losses.append(
            json.loads(Path(f"runs/vision/x{every}/summary.json").read_text())["final"]["test_loss"]
        )
    assert losses[0] != losses[1]
    status, _, err = command(*tiny, "hessian_every=0")
    assert status == 2
    assert "hessian_every=0: must be at least 1" in err


@pytest.mark.parametrize("name", options("schedule"))
@pytest.mark.parametrize("tracking", options("tracking"))
def test_schedule_and_tracking_configs(name: str, tracking: str) -> None:
    configure(f"schedule={name}", f"tracking={tracking}").check()


@pytest.mark.parametrize("name", options("augment"))
@pytest.mark.parametrize("data", options("data"))
def test_data_and_augment_configs(data: str, name: str) -> None:
    config = configure(f"data={data}", f"augment={name}")
    config.check()
    from PIL import Image

    size = (config.data.size, config.data.size)
    image = Image.new("L" if config.data.channels == 1 else "RGB", size)
    for transform in (train_transform(config.data, config.augment), evaluation_transform(config.data)):
        assert transform(image).shape == (config.data.channels, *size)


@pytest.mark.parametrize("name", options("model"))
def test_model_configs(name: str) -> None:
    config = configure(f"model={name}", "data.size=32")
    if name == "convnext_tiny":
        config.model.kwargs |= {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}
    model = Classification(config).build_model()
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_every_option_of_the_command_works_together(command: Command) -> None:
    status, out, err = command(
        *TINY, "augment=strong", "loss=bce", "ema_decay=0.9", "gradient_accumulation_steps=2", "clip_grad=1",
        "amp=bf16",
        "augment.erase=0.2", "augment.interpolation=bilinear", "augment.auto_augment=null",
        "model.drop_path=0.1",
        "optimizer.layer_decay=0.7", "model.kwargs.depth=2", "workers=1", "seed=3",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "ema_test_accuracy" in out


@pytest.mark.recipe
def test_channels_last_convolutions(command: Command) -> None:
    small = ["data.size=16", "epochs=1", "batch_size=256", "schedule.warmup_epochs=0"]
    status, _, err = command("model=resnet18", "channels_last=true", *small)
    assert (status, err) == (0, "")


def test_no_warnings_and_nothing_left_behind(command: Command) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert command(*TINY)[0] == 0
    assert [path.name for path in Path().iterdir()] == ["runs"]
    assert [path.name for path in Path("runs").iterdir()] == ["vision"]


@pytest.mark.recipe
def test_multirun_and_its_failures(command: Command) -> None:
    status, _, err = command("-m", *TINY, "optimizer=adan,adamw", "optimizer.lr=-1,0.01")
    assert status == 2
    assert len(err.splitlines()) == 2  # one line for each failing job, the others ran
    assert len(list(Path("runs/vision").iterdir())) == 2


@pytest.mark.recipe
def test_the_same_command_in_another_order_is_the_same_run(command: Command) -> None:
    command(*TINY, "seed=1")
    assert "is finished" in command("seed=1", *TINY, "workers=1")[1]


@pytest.mark.recipe
def test_wandb_offline(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wandb's own
        status, _, err = command(*TINY, "tracking=wandb", "tracking.mode=offline", "run.name=x")
    assert status == 0
    assert "error" not in err.lower()
    assert list(Path("runs/vision/x/wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.recipe
def test_tensorboard(command: Command) -> None:
    assert command(*TINY, "tracking=tensorboard", "run.name=x")[0] == 0
    assert list(Path("runs/vision/x/tensorboard").glob("events.*"))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adan", "adamw"])
def test_the_default_run_ends_above_97_percent(command: Command, optimizer: str) -> None:
    assert command(f"optimizer={optimizer}", "run.name=x")[0] == 0
    summary = json.loads(Path("runs/vision/x/summary.json").read_text())
    assert summary["final"]["test_accuracy"] > 97


@pytest.mark.recipe
def test_held_out_images_are_measured_and_the_test_images_at_the_end(command: Command) -> None:
    status, _, err = command(*TINY, "data.valid_share=0.25", "run.name=held")
    assert status == 0, err
    records = [json.loads(line) for line in Path("runs/vision/held/metrics.jsonl").read_text().splitlines()]
    measured, closing = records[-2:]
    assert {"valid_loss", "valid_accuracy", "valid_top5"} <= measured.keys()
    assert not any(key.startswith("test_") for key in measured)
    assert {"test_loss", "test_accuracy", "test_top5", "weights_of_step"} <= closing.keys()
    task = Classification(configure("data.valid_share=0.25"))
    whole = Classification(configure())
    train, valid, test = task.train_data(), task.valid_data(), task.test_data()
    assert test is not None
    assert whole.test_data() is None
    assert (len(train), len(valid), len(test)) == (1077, 360, 360)
    classes = [sum(valid[i][1] == digit for i in range(len(valid))) for digit in range(10)]
    assert max(classes) - min(classes) <= 2  # stratified
    kept, held = set(task.sets.train.indices), set(task.sets.valid.indices)  # type: ignore[union-attr]
    assert not kept & held
    assert kept | held == set(range(len(whole.train_data())))
    for share in ("1", "-0.1", "0.001"):
        status, _, err = command(*TINY, f"data.valid_share={share}", "run.name=bad")
        assert (status, f"data.valid_share={share}" in err) == (2, True)


@pytest.mark.recipe
def test_restarts_begin_again_with_moments_of_zero(command: Command) -> None:
    finals = {}
    for every in ("null", "10", "1000"):
        assert command(*TINY, f"restart_every={every}", f"run.name=x{every}")[0] == 0
        finals[every] = json.loads(Path(f"runs/vision/x{every}/summary.json").read_text())["final"][
            "test_loss"
        ]
    assert finals["null"] == finals["1000"] != finals["10"]
    status, _, err = command(*TINY, "optimizer=adamw", "restart_every=10", "run.name=y")
    assert (status, "restart_every=10: is for optimizer=adan, not adamw" in err) == (2, True)
