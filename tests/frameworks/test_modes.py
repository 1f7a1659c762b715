"""Optimizers with modes (schedule-free): the Trainer switches them, and continues from checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

import adan_optim
from adan_optim.schedule_free import ScheduleFree

NAMES = [name for name, cls in adan_optim.OPTIMIZERS.items() if issubclass(cls, ScheduleFree)]


class Model(torch.nn.Module):
    """A network that notes, for each forward pass, the modes of itself and of its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        self.optimizer: ScheduleFree | None = None
        self.seen: set[tuple[bool, bool]] = set()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.optimizer is not None:
            self.seen.add((self.training, self.optimizer.is_training))
        return {"loss": (self.network(x).squeeze(1) - labels).square().mean()}


def trainer(folder: Path, name: str, steps: int) -> tuple[Model, Trainer]:
    generator = torch.Generator().manual_seed(1)
    rows = [{"x": x, "labels": x.sum()} for x in torch.randn(64, 3, generator=generator)]
    settings: Any = dict(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=steps,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=3,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    model = Model()
    model.optimizer = optimizer = adan_optim.build_optimizer(model, name, lr=0.05)  # type: ignore[assignment]
    given: Any = (optimizer, None)
    return model, Trainer(
        model, TrainingArguments(**settings), train_dataset=rows, eval_dataset=rows, optimizers=given
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_trainer_switches_modes(name: str, tmp_path: Path) -> None:
    """It trains at y and evaluates at x: an evaluation finds the loss that `evaluating` finds."""
    model, hugging = trainer(tmp_path, name, 6)
    hugging.train()
    assert model.seen == {(True, True), (False, False)}
    found = hugging.evaluate()["eval_loss"]
    assert model.optimizer is not None
    model.optimizer.train()
    rows = hugging.train_dataset
    x, labels = (torch.stack([row[key] for row in rows]) for key in ("x", "labels"))  # type: ignore[union-attr]
    with torch.no_grad():
        assert abs(float(model(x, labels)["loss"]) - found) > 1e-4
        with adan_optim.evaluating(model.optimizer):
            assert abs(float(model(x, labels)["loss"]) - found) < 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", [3, 6], ids=["after training", "after an evaluation"])
def test_its_checkpoints_go_on(name: str, at: int, tmp_path: Path) -> None:
    """Whether its newest step was evaluated, which leaves the optimizer in eval mode, or not."""
    whole, hugging = trainer(tmp_path / "whole", name, 9)
    hugging.train()
    _, first = trainer(tmp_path / "parts", name, at)
    first.train()
    second, again = trainer(tmp_path / "parts", name, 9)
    again.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{at}"))
    for p, q in zip(whole.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
