"""Schedule-free optimizers in the loop: what is evaluated, saved and averaged is the mean of the steps."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_loop import StopError, folder, result, stop_after
from torch.optim.swa_utils import AveragedModel
from toy import ToyTask

import adan_optim
from repro.train import trainer
from repro.train.config import TrainConfig
from repro.train.trainer import train

NAMES = ("schedule_free_adamw", "schedule_free_adan")
each_name = pytest.mark.parametrize("name", NAMES)


def with_optimizer(config: TrainConfig, name: str, **options: Any) -> TrainConfig:
    return replace(config, optimizer={"name": name, "lr": 0.02, "warmup_steps": 3}, **options)


@each_name
@pytest.mark.parametrize("stop", [3, 8, 13, 32])
def test_resume_is_bit_identical(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, name: str, stop: int
) -> None:
    config = with_optimizer(config, name)
    train(ToyTask(), config, "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(StopError):
            train(ToyTask(), config, "broken")
    train(ToyTask(), config, "broken")
    assert result(folder(config, "broken")) == result(folder(config, "whole"))


@each_name
def test_what_is_evaluated_saved_and_averaged_is_the_mean(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An average that forgets all but the newest weights is x, as what the last evaluation saved."""
    built: list[Any] = []
    modes: set[tuple[str, bool]] = set()

    def watch(owner: Any, function: str) -> None:
        original = getattr(owner, function)

        def watched(*arguments: Any) -> Any:
            modes.add((function, built[-1].is_training))
            return original(*arguments)

        monkeypatch.setattr(owner, function, watched)

    def keeping(*arguments: Any) -> Any:
        built.append(adan_optim.build_optimizer(*arguments))
        return built[-1]

    monkeypatch.setattr(trainer, "build_optimizer", keeping)
    watch(trainer.Evaluator, "evaluate")
    watch(AveragedModel, "update_parameters")
    watch(ToyTask, "loss")
    train(ToyTask(), with_optimizer(config, name, ema_decay=1e-9), "run")
    assert modes == {("evaluate", False), ("update_parameters", False), ("loss", True)}

    last = sorted((folder(config, "run") / "checkpoints").glob("step-*"))[-1]
    x, average = (load_file(last / f"{weights}.safetensors")["0.weight"] for weights in ("model", "ema"))
    saved = torch.load(last / "training.pt", weights_only=True)["optimizer"]
    assert not any(group["train_mode"] for group in saved["param_groups"])
    torch.testing.assert_close(average, x)
    assert (saved["state"][0]["z"] - x).abs().max() > 1e-4
