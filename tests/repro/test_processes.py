"""Two processes do what one does with twice the micro-batches."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_loop import StopError, stop_after
from toy import BlocksTask, ToyTask
from toy_streams import STREAMS, StreamTask

from repro.errors import UserError
from repro.interop import read_weights
from repro.train.config import RunConfig, TrainConfig
from repro.train.trainer import train
from vision.train import main

HERE = Path(__file__).resolve().parent
SMALL = ["epochs=2", "schedule.warmup_epochs=0", "model.kwargs.embed_dim=16", "optimizer=adan"]
# nothing random in the model or between samples: there one process may have the same micro-batch, too
PLAIN = [*SMALL, "run.name=plain"]
# randomness of every kind: by sample, by micro-batch, inside the model
RANDOM = [*SMALL, "run.name=random", "ema_decay=0.9", "repeats=2", "model.drop_path=0.1", "augment.mixup=0.4"]

# with everything that a sharded run can have; two processes share a micro-batch of four
BLOCKS = {
    "epochs": 2,
    "batch_size": 8,
    "clip_grad": 0.5,
    "eval_every": 3,
    "optimizer": {"name": "adan", "lr": 0.02},
}


def blocks(root: Path, fsdp: bool = True) -> TrainConfig:
    """One process with as many micro-batches as two."""
    run = RunConfig(root=str(root), checkpoint_every=3)
    return TrainConfig(**BLOCKS, gradient_accumulation_steps=2, fsdp=fsdp, run=run)


def records(root: Path, name: str, recipe: str = "vision") -> list[dict[str, Any]]:
    lines = (root / recipe / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the runs that two processes made."""
    root = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:  # which the two will continue
        stop_after(patch, 6)
        with pytest.raises(StopError):
            train(BlocksTask(), blocks(root), "grown")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [
            *launch,
            str(HERE / "two_processes.py"),
            str(root),
            json.dumps([PLAIN, RANDOM]),
            json.dumps(BLOCKS | {"fsdp": True}),
        ],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{HERE.parents[1]}:{HERE.parents[1]}/optim:{HERE}",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "arning" not in done.stderr
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "parts"), [(PLAIN, 1), (PLAIN, 2), (RANDOM, 2)])
def test_two_processes_give_the_metrics_of_one(
    two: Path, tmp_path: Path, arguments: list[str], parts: int
) -> None:
    assert main([*arguments, f"gradient_accumulation_steps={parts}", f"run.root={tmp_path}"]) == 0
    name = next(word for word in arguments if word.startswith("run.name=")).removeprefix("run.name=")
    ours, theirs = records(tmp_path, name), records(two, name)
    assert len(ours) == len(theirs) == 2
    image = 100.1 / 360  # rounding may decide between two classes
    for one, other in zip(ours, theirs, strict=True):
        hits = {key for key in one if key.endswith(("accuracy", "top5"))}
        assert hits
        assert one == {
            key: pytest.approx(value, rel=1e-5, abs=image if key in hits else None)
            for key, value in other.items()
        }


@pytest.mark.slow
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
    assert records(two, "told", "streams") == theirs  # told to stop
    last = two / "streams" / "carried" / "checkpoints" / "step-000000008" / "training.pt"
    states = torch.load(last, weights_only=True)["states"]  # of two processes with a slot each
    assert [state["hidden"].shape for (state,) in states] == [(1, STREAMS // 2, 8)] * 2
    assert not torch.equal(states[0][0]["hidden"], states[1][0]["hidden"])


@pytest.mark.slow
def test_what_two_processes_began_one_continues_with_twice_the_micro_batches(two: Path) -> None:
    config = TrainConfig(
        epochs=2,
        batch_size=STREAMS,
        gradient_accumulation_steps=2,
        optimizer={"name": "adan", "lr": 0.02},
        run=RunConfig(root=str(two), checkpoint_every=3),
    )
    with pytest.raises(
        UserError,
        match=r"begun with 2 process\(es\) and gradient_accumulation_steps=1, now there are 1 and 1; their",
    ):
        train(StreamTask(), dataclasses.replace(config, gradient_accumulation_steps=1), "shrunk")
    train(StreamTask(), config, "shrunk")
    ours, theirs = records(two, "shrunk", "streams"), records(two, "carried", "streams")
    assert ours[-1]["weights_of_step"] == 8
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_a_sharded_run_gives_the_metrics_of_a_whole_one(two: Path, tmp_path: Path, fsdp: bool) -> None:
    summary = train(BlocksTask(), blocks(tmp_path, fsdp), "sharded")
    ours, theirs = records(tmp_path, "sharded", "blocks"), records(two, "sharded", "blocks")
    assert [record["step"] for record in ours] == [3, 6, 8, 9, 12, 15, 16]
    for one, other in zip(ours, theirs, strict=True):
        assert {"train_loss", "grad_norm", "valid_loss", "accuracy"} < one.keys()
        assert one == pytest.approx(other, rel=1e-5)
    other = json.loads((two / "blocks/sharded/summary.json").read_text())
    [ours], [theirs] = (map(float, each["examples"]) for each in (summary, other))
    assert ours == pytest.approx(theirs, abs=2e-5)  # it is printed to 1e-5
    assert summary["parameters"] == other["parameters"] == 24 + 2 * (16 + 72) + 18
    assert other["monitor"]  # which adds up over the processes
    parts = sorted(path.name for path in (two / "blocks/sharded/checkpoints/step-000000016").glob("*.distcp"))
    assert parts == ["__0_0.distcp", "__1_0.distcp"]


@pytest.mark.slow
def test_sharded_checkpoints_go_on_with_another_number_of_processes(two: Path) -> None:
    train(BlocksTask(), blocks(two), "shrunk")
    expected = records(two, "sharded", "blocks")
    for name in ("grown", "shrunk"):
        for one, other in zip(records(two, name, "blocks"), expected, strict=True):
            assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
def test_weights_of_a_sharded_run_are_read_whole(two: Path, tmp_path: Path) -> None:
    train(BlocksTask(), blocks(tmp_path, fsdp=False), "whole")
    weights, found = read_weights(two / "blocks" / "sharded")
    best = found.path.name
    whole = load_file(tmp_path / "blocks" / "whole" / "checkpoints" / best / "model.safetensors")
    assert weights.keys() == whole.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-4, atol=1e-6)
    assert found.optimizers == {}  # which are in the shards


@pytest.mark.slow
def test_a_sharded_run_continues_to_the_same_bits(tmp_path: Path) -> None:
    train(BlocksTask(), blocks(tmp_path), "whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 10)
        with pytest.raises(StopError):
            train(BlocksTask(), blocks(tmp_path), "stopped")
    train(BlocksTask(), blocks(tmp_path), "stopped")
    both = [tmp_path / "blocks" / name for name in ("whole", "stopped")]
    assert len({(path / "metrics.jsonl").read_text() for path in both}) == 1
    one, other = (read_weights(path)[0] for path in both)
    for name in one:
        assert torch.equal(one[name], other[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amp": "fp16"}, "amp=fp16: fsdp=true has no loss scale; set amp=bf16"),
        ({"ema_decay": 0.9}, "ema_decay=0.9: fsdp=true keeps no average"),
        ({"optimizer": {"name": "sophia"}}, "optimizer=sophia: its estimates"),
    ],
)
def test_what_sharded_runs_cannot_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(fsdp=True, **options).check()


def test_a_model_without_units(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fsdp=true: Sequential has none of the units \[\] to shard by"):
        train(ToyTask(), blocks(tmp_path), "none")
