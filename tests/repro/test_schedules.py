"""Schedules against timm's and transformers'."""

import math

import pytest
import timm.scheduler
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from repro.errors import UserError
from repro.train.config import ScheduleConfig, TrainConfig
from repro.train.schedules import build_schedule, constant, cosine, multistep, polynomial

LR = 0.015


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), LR)


@pytest.mark.parametrize(("total", "warmup"), [(150, 60), (300, 0), (10, 3), (2, 1)])
@pytest.mark.parametrize(("warmup_lr", "min_lr"), [(1e-8, 1e-8), (1e-6, 1e-5), (0.0, 0.0)])
def test_cosine_is_timms(total: int, warmup: int, warmup_lr: float, min_lr: float) -> None:
    sgd = optimizer()
    theirs = timm.scheduler.CosineLRScheduler(
        sgd, t_initial=total, lr_min=min_lr, warmup_t=warmup, warmup_lr_init=warmup_lr
    )
    for t in range(total + 10):  # ten epochs of cool-down
        theirs.step(t)
        ours = LR * cosine(t, total, warmup, warmup_lr / LR, min_lr / LR)
        assert ours == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12, abs=1e-18)


def test_lr_just_after_warmup_is_the_released_logs() -> None:
    assert LR * cosine(60, 150, 60, 1e-8 / LR, 1e-8 / LR) == pytest.approx(0.00981763, abs=5e-9)


def test_linear_is_transformers() -> None:
    sgd = optimizer()
    theirs = get_linear_schedule_with_warmup(sgd, num_warmup_steps=7, num_training_steps=50)
    for t in range(50):
        assert LR * polynomial(t, 50, 7) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12)
        sgd.step()
        theirs.step()


def test_polynomial_ends_and_power() -> None:
    assert polynomial(50, 100, end=0.1, power=2) == pytest.approx(0.1 + 0.9 * 0.25)
    assert polynomial(100, 100, end=0.1) == polynomial(200, 100, end=0.1) == 0.1


def test_constant() -> None:
    assert [constant(t, 4, 0.5) for t in (0, 2, 4, 9)] == [0.5, 0.75, 1, 1]


def test_per_epoch_changes_between_epochs_only() -> None:
    config = ScheduleConfig(per="epoch", warmup_epochs=2, warmup_lr=1e-3)
    multiplier = build_schedule(config, LR, epochs=10, steps_per_epoch=5)
    assert len({multiplier(step) for step in range(5, 10)}) == 1
    assert multiplier(5) == cosine(1, 10, 2, 1e-3 / LR)


def test_per_step_and_cooldown() -> None:
    config = ScheduleConfig(per="step", min_lr=1e-3, cooldown_epochs=2)
    multiplier = build_schedule(config, LR, epochs=10, steps_per_epoch=5)
    assert multiplier(7) == cosine(7, 50, end=1e-3 / LR)
    assert LR * multiplier(55) == pytest.approx(1e-3)


def test_warmup_longer_than_the_run() -> None:
    with pytest.raises(UserError, match=r"schedule\.warmup_epochs=11: .* 10 epochs"):
        build_schedule(ScheduleConfig(warmup_epochs=11), LR, 10, 5)


@pytest.mark.parametrize(("total", "warmup"), [(50, 0), (50, 5), (200, 3)])
def test_a_scaled_cosine_is_the_recursion_of_transformer_xl(total: int, warmup: int) -> None:
    config = ScheduleConfig(name="cosine", per="step", join="scale", warmup_steps=warmup)
    multiplier = build_schedule(config, LR, 1, 10, steps=total)
    expected = 1.0
    for step in range(1, total + 1):
        if step < warmup:
            expected = step / warmup
        else:
            grow = [1 + math.cos(math.pi * t / total) for t in (step, step - 1)]
            expected *= grow[0] / grow[1]
        assert multiplier(step) == pytest.approx(expected, rel=1e-10, abs=1e-15)


def test_a_shifted_cosine_is_transformers() -> None:
    sgd = optimizer()
    theirs = get_cosine_schedule_with_warmup(sgd, num_warmup_steps=7, num_training_steps=50)
    for t in range(50):
        assert cosine(t, 50, 7, join="shift") == pytest.approx(sgd.param_groups[0]["lr"] / LR, rel=1e-12)
        sgd.step()
        theirs.step()


@pytest.mark.parametrize(
    ("changes", "steps", "message"),
    [
        (
            dict(warmup_steps=50),
            50,
            "warm-up of 50 steps must be shorter than the run of 50 steps; set schedule.warmup_steps=5",
        ),
        (dict(per="epoch"), 50, "needs schedule.per=step"),
        (dict(join="scale", min_lr=0.1), 50, "schedule.join=scale: needs"),
    ],
)
def test_schedules_in_steps_that_cannot_work(changes: dict[str, object], steps: int, message: str) -> None:
    config = ScheduleConfig(**{"per": "step", "join": "shift", "warmup_lr": 0.0, **changes})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        build_schedule(config, LR, 1, 10, steps=steps)


def test_steps_are_torchs() -> None:
    sgd = optimizer()
    theirs = torch.optim.lr_scheduler.MultiStepLR(sgd, [100, 145], gamma=0.3)
    for t in range(200):
        assert LR * multistep(t, [100, 145], 0.3) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12)
        sgd.step()
        theirs.step()


def test_steps_begin_with_an_epoch_and_may_warm_up() -> None:
    for per in ("epoch", "step"):
        config = ScheduleConfig("step", per, milestones=[4, 6], factor=0.5, warmup_epochs=2, warmup_lr=LR / 2)
        multiplier = build_schedule(config, LR, epochs=8, steps_per_epoch=5)
        assert [multiplier(step) for step in (0, 5, 10, 19, 20, 29, 30, 39)] == [
            *[0.5, 0.75, 1, 1],
            *[0.5, 0.5, 0.25, 0.25],
        ]
    config = ScheduleConfig("step", "step", milestones=[7])
    multiplier = build_schedule(config, LR, epochs=8, steps_per_epoch=5, steps=9)
    assert [multiplier(step) for step in (0, 6, 7, 8)] == [1, 1, 0.1, 0.1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(), r"schedule\.milestones=\[\]: schedule.name=step needs at least one"),
        (dict(milestones=[0, 2]), r"schedule\.milestones=\[0, 2\]: must be at least 1 and rise"),
        (dict(milestones=[3, 2]), r"schedule\.milestones=\[3, 2\]: must be at least 1 and rise"),
        (dict(milestones=[2], factor=0.0), r"schedule\.factor=0\.0: must be above 0"),
    ],
)
def test_steps_that_cannot_work(changes: dict[str, object], message: str) -> None:
    config = TrainConfig(schedule=ScheduleConfig("step", **changes))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        config.check()
