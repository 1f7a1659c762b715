"""Fixtures of the tests of repro."""

from pathlib import Path

import pytest

from repro.train.config import RunConfig, TrainConfig


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Four epochs of eight steps, a checkpoint every three, everything that has state switched on."""
    return TrainConfig(
        epochs=4,
        batch_size=8,
        gradient_accumulation_steps=2,
        ema_decay=0.9,
        optimizer={"name": "adan", "lr": 0.01},
        run=RunConfig(root=str(tmp_path / "runs"), checkpoint_every=3, log_every=2),
    )
