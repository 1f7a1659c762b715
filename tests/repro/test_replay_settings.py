"""Replay: the tables of settings, and planted differences."""

from dataclasses import replace
from typing import Any

import pytest
from replay_samples import changed, load, recipe, timm_args

from repro.verify import fairseq, timm
from repro.verify.settings import FREE, Must, Ours, Table, compare

ROW = recipe(optimizer={"lr": 1e-3, "betas": [0.9, 0.99]}, batch_size=64, amp="fp16")
TABLE = Table(
    {
        "lr": Ours("optimizer.lr"),
        "betas": Ours("optimizer.betas"),
        "per_gpu": Ours("batch_size", lambda settings: settings["per_gpu"] * 8),
        "clip": Ours("clip_grad", lambda settings: settings["clip"] or None),
        "nesterov": Must(False),
        "folder": FREE,
        "wandb.*": FREE,
    },
    absent={"clip": 0.0},
)
FILE = {
    "lr": 1e-3,
    "betas": (0.9, 0.99),
    "per_gpu": 8,
    "nesterov": False,
    "folder": "a",
    "wandb.project": "b",
}


def test_settings_that_agree() -> None:
    comparison = compare(FILE, ROW, TABLE)
    assert comparison.differences == ()
    assert comparison.fields == 7  # with `clip`, which is off where nothing is said of it
    assert comparison.kinds == (4, 1, 2)


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        ({"lr": 2e-3}, "lr: 0.002, ours has optimizer.lr=0.001"),
        ({"betas": [0.9, 0.999]}, "betas: [0.9, 0.999], ours has optimizer.betas=[0.9, 0.99]"),
        ({"betas": [0.9]}, "betas: [0.9], ours"),
        ({"per_gpu": 9}, "per_gpu: 72, ours has batch_size=64"),
        ({"per_gpu": None}, "per_gpu: None cannot be understood"),
        ({"clip": 1.0}, "clip: 1.0, ours has no clip_grad"),
        ({"nesterov": True}, "nesterov: True, where only False"),
        ({"nesterov": 0}, "nesterov: 0, where only False"),
        ({"swa": True}, "swa: True: nothing is known of this key"),
    ],
)
def test_settings_that_differ(planted: dict[str, Any], message: str) -> None:
    (difference,) = compare({**FILE, **planted}, ROW, TABLE).differences
    assert difference.startswith(message)


@pytest.mark.parametrize("key", ["lr", "nesterov"])
def test_a_key_dropped_from_the_file(key: str) -> None:
    settings = {name: value for name, value in FILE.items() if name != key}
    assert compare(settings, ROW, TABLE).differences == (f"{key}: not in the file",)
    assert bool(compare(settings, ROW, replace(TABLE, partial=True)).differences) == (key == "lr")


def test_a_key_dropped_from_ours() -> None:
    ours = recipe(optimizer={"betas": [0.9, 0.99]}, batch_size=64)
    assert compare(FILE, ours, TABLE).differences == ("lr: 0.001, ours has no optimizer.lr",)


@pytest.mark.parametrize(
    ("planted", "keys"),
    [
        ({}, ""),
        ({"experiment": "bs4096", "batch_size": 256}, "batch_size"),
        ({"aug_repeats": 3}, "aug_repeats"),
        ({"bce_loss": False}, "bce_loss"),
        ({"crop_pct": 0.95}, "crop_pct"),
        ({"img_size": 256}, "img_size input_size"),
        ({"interpolation": "bilinear"}, "interpolation"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean"),
        ({"amp": False}, "amp"),
        ({"jsd_loss": True}, "jsd_loss"),
        ({"warmup_lr": 1e-6}, "warmup_lr"),
    ],
)
def test_timm_settings(planted: dict[str, Any], keys: str) -> None:
    found = compare(timm_args() | planted, load("imagenet/vit_s_150_i"), timm.TABLE).differences
    assert {difference.split(":")[0] for difference in found} == set(keys.split())


def test_averaged_weights_are_two_keys_of_theirs_and_one_of_ours() -> None:
    args = timm_args() | {"model_ema": True}
    row = load("imagenet/vit_s_150_i")
    assert len(compare(args, row, timm.TABLE).differences) == 2
    assert compare(args, changed(row, ema_decay=0.9998), timm.TABLE).differences == ()


GLUE = {
    "common.fp16": True,
    "common.fp16_init_scale": 4,
    "common.fp16_scale_window": 128,
    "common.log_interval": 200,
    "common.threshold_loss_scale": 1,
    "task._name": "sentence_prediction",
    "task.init_token": 0,
    "task.separator_token": 2,
    "task.num_classes": 2,
    "task.max_positions": 512,
    "checkpoint.best_checkpoint_metric": "accuracy",
    "checkpoint.maximize_best_checkpoint_metric": True,
    "distributed_training.distributed_world_size": 1,
    "criterion._name": "sentence_prediction",
    "dataset.batch_size": 16,
    "dataset.max_tokens": 4400,
    "optimizer._name": "adan",
    "optimizer.weight_decay": 0.01,
    "optimizer.adan_betas": "(0.98,0.99,0.99)",
    "optimizer.adan_eps": 1e-8,
    "lr_scheduler._name": "polynomial_decay",
    "lr_scheduler.warmup_updates": 122,
    "optimization.clip_norm": 0.0,
    "optimization.lr": [2e-5],
    "optimization.max_update": 2036,
    "optimization.max_epoch": 10,
    "model._name": "roberta",
    "model.dropout": 0.1,
    "model.attention_dropout": 0.1,
}


@pytest.mark.parametrize(
    ("planted", "keys"),
    [
        ({}, ""),
        ({"optimizer.adan_betas": "(0.98,0.92,0.99)"}, "optimizer.adan_betas"),
        ({"optimizer.adam_betas": "(0.9,0.99)"}, "optimizer.adam_betas"),
        (
            {"optimization.update_freq": [2]},
            "optimization.update_freq dataset.batch_size distributed_training.distributed_world_size",
        ),
        (
            {"distributed_training.distributed_world_size": 2},
            "dataset.batch_size distributed_training.distributed_world_size",
        ),
        ({"optimization.clip_norm": 0.5}, "optimization.clip_norm"),
        ({"lr_scheduler._name": "cosine"}, "lr_scheduler._name"),
        ({"lr_scheduler._name": "fixed"}, "lr_scheduler._name"),
        ({"criterion.regression_target": True}, "criterion.regression_target"),
        ({"common.seed": 2}, "common.seed"),
        ({"checkpoint.best_checkpoint_metric": "loss"}, "checkpoint.best_checkpoint_metric"),
        ({"checkpoint.reset_optimizer": False}, "checkpoint.reset_optimizer"),
        ({"common.fp16_init": 4}, "common.fp16_init"),
    ],
)
def test_fairseq_settings(planted: dict[str, Any], keys: str) -> None:
    settings = GLUE | planted
    found = compare(settings, load("glue/rte"), fairseq.table(settings)).differences
    assert {difference.split(":")[0] for difference in found} == set(keys.split())
