"""Two processes do what one does with twice the micro-batches."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import ToyTask
from toy_streams import STREAMS, StreamTask

from repro.config import RunConfig, TrainConfig
from repro.errors import UserError
from repro.loop import train
from vision.train import main

HERE = Path(__file__).resolve().parent
SMALL = ["epochs=2", "schedule.warmup_epochs=0", "model.kwargs.embed_dim=16", "optimizer=adan"]
# nothing random in the model or between samples: there one process may have the same micro-batch, too
PLAIN = [*SMALL, "run.name=plain"]
# randomness of every kind: by sample, by micro-batch, inside the model
RANDOM = [*SMALL, "run.name=random", "ema_decay=0.9", "repeats=2", "model.drop_path=0.1", "augment.mixup=0.4"]


def records(root: Path, name: str, recipe: str = "vision") -> list[dict[str, Any]]:
    lines = (root / recipe / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the runs that two processes made."""
    root = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(HERE / "two_processes.py"), str(root), json.dumps([PLAIN, RANDOM])],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parents[1]}:{HERE}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "arning" not in done.stderr
    return root


@pytest.mark.parametrize(("arguments", "accumulate"), [(PLAIN, 1), (PLAIN, 2), (RANDOM, 2)])
def test_two_processes_give_the_metrics_of_one(
    two: Path, tmp_path: Path, arguments: list[str], accumulate: int
) -> None:
    assert main([*arguments, f"accumulate={accumulate}", f"run.root={tmp_path}"]) == 0
    name = next(word for word in arguments if word.startswith("run.name=")).removeprefix("run.name=")
    ours, theirs = records(tmp_path, name), records(two, name)
    assert len(ours) == len(theirs) == 2
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_two_processes_carry_the_state_of_one(two: Path, tmp_path: Path) -> None:
    """Weights, streams, states, sums of any shape, the closing test."""
    train(
        StreamTask(),
        TrainConfig(
            epochs=2,
            batch_size=STREAMS,
            optimizer={"name": "adan", "lr": 0.02},
            run=RunConfig(root=str(tmp_path)),
        ),
        "carried",
    )
    ours, theirs = records(tmp_path, "carried", "streams"), records(two, "carried", "streams")
    assert len(ours) == len(theirs) == 3
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert records(two, "broken", "streams") == theirs  # stopped after six steps, and continued
    last = two / "streams" / "carried" / "checkpoints" / "step-000000008" / "training.pt"
    states = torch.load(last, weights_only=True)["states"]  # of two processes with a slot each
    assert [state["hidden"].shape for (state,) in states] == [(1, STREAMS // 2, 8)] * 2
    assert not torch.equal(states[0][0]["hidden"], states[1][0]["hidden"])


def test_what_two_processes_began_one_does_not_continue(two: Path) -> None:
    config = TrainConfig(
        epochs=2,
        batch_size=8,
        ema_decay=0.9,
        optimizer={"name": "adan", "lr": 0.01},
        run=RunConfig(root=str(two)),
    )
    (two / "toy/statistics/summary.json").unlink()
    with pytest.raises(UserError, match=r"was begun with 2 process\(es\), now there are 1; start as many"):
        train(ToyTask(), config, "statistics")
