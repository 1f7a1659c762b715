"""The loop on a toy task: resume to the bit, clear errors, what a run folder holds."""

import copy
import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from toy import ToyTask

from repro.errors import UserError
from repro.interop import read_weights
from repro.train import checkpoint, saving, trainer
from repro.train.config import TrainConfig
from repro.train.trainer import train


class StopError(Exception):
    """Stands in for a kill."""


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Make the loop raise StopError at the end of its `steps`-th step."""
    original, count = trainer.Trainer._end_step, 0

    def counted(self: trainer.Trainer, *arguments: Any) -> None:
        nonlocal count
        original(self, *arguments)
        count += 1
        if count == steps:
            raise StopError

    monkeypatch.setattr(trainer.Trainer, "_end_step", counted)


def folder(config: TrainConfig, name: str) -> Path:
    return Path(config.run.root) / "toy" / name


def result(path: Path) -> tuple[str, dict[str, Any]]:
    last = sorted((path / "checkpoints").glob("step-*"))[-1]
    files = checkpoint.read_manifest(last)["files"]
    del files["progress.json"]  # has times
    return (path / "metrics.jsonl").read_text(), files


@pytest.mark.parametrize("stop", [1, 3, 4, 8, 13, 16, 31, 32])
def test_resume_is_bit_identical(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    train(ToyTask(), config, "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(StopError):
            train(ToyTask(), config, "broken")
    train(ToyTask(), config, "broken")
    assert result(folder(config, "broken")) == result(folder(config, "whole"))
    speeds, metrics = (folder(config, "broken") / name for name in ("speed.jsonl", "metrics.jsonl"))
    assert len(speeds.read_text().splitlines()) == len(metrics.read_text().splitlines())


def test_a_damaged_checkpoint_is_passed_over(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(ToyTask(), config, "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 13)
        with pytest.raises(StopError):
            train(ToyTask(), config, "broken")
    newest = checkpoint.newest(folder(config, "broken") / "checkpoints")
    assert newest is not None
    (newest / "training.pt").write_bytes(b"x")
    train(ToyTask(), config, "broken")
    assert f"checkpoint {newest} is damaged (training.pt has 1 bytes" in capsys.readouterr().out
    assert result(folder(config, "broken")) == result(folder(config, "whole"))


@pytest.mark.parametrize("stop", [5, 6, 16, 17])
def test_a_run_in_steps(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    config.steps, config.eval_every = 19, 6  # two epochs of eight and three steps
    config.schedule.per = "step"
    train(ToyTask(), config, "whole")
    lines, _ = result(folder(config, "whole"))
    records = [json.loads(line) for line in lines.splitlines()]
    measured = [record["step"] for record in records if "accuracy" in record]
    assert measured == [6, 8, 12, 16, 18, 19]
    assert [record["epoch"] for record in records if record["step"] in (8, 12, 19)] == [1, 1.5, 2.375]
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(StopError):
            train(ToyTask(), config, "broken")
    train(ToyTask(), config, "broken")
    assert result(folder(config, "broken")) == result(folder(config, "whole"))


def test_workers_do_not_change_the_result(config: TrainConfig) -> None:
    config.epochs = 1
    train(ToyTask(), config, "alone")
    config.workers = 2
    train(ToyTask(), config, "helped")
    assert result(folder(config, "alone")) == result(folder(config, "helped"))


def test_accumulation_takes_the_same_samples(config: TrainConfig) -> None:
    config.epochs = 1
    whole, parts = ToyTask(), ToyTask()
    train(parts, config, "parts")
    config.gradient_accumulation_steps = 1
    train(whole, config, "whole")
    assert len(parts.seen) == 2 * len(whole.seen)
    assert torch.equal(torch.cat(parts.seen), torch.cat(whole.seen))


def test_folder_and_summary(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    summary = train(ToyTask(), config, "run")
    path = folder(config, "run")
    assert json.loads((path / "summary.json").read_text()) == summary
    assert {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints"} <= set(os.listdir(path))
    (start,) = json.loads((path / "environment.json").read_text())
    assert start["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    epochs = [record for record in records if isinstance(record["epoch"], int)]
    assert [record["step"] for record in epochs] == [8, 16, 24, 32]
    assert [record["epoch"] for record in records[:4]] == [0.25, 0.5, 0.75, 1]
    speeds = [json.loads(line) for line in (path / "speed.jsonl").read_text().splitlines()]
    assert [speed["step"] for speed in speeds] == [record["step"] for record in records]
    assert all(speed["points_per_second"] > 0 and 0 < speed["wait_share"] < 1 for speed in speeds)
    assert summary["tflop_per_second"] == pytest.approx(summary["points_per_second"] * 96 / 1e12, rel=1e-3)
    assert summary["final"] == epochs[-1]
    assert summary["best"]["ema_accuracy"] == max(record["ema_accuracy"] for record in epochs)
    hits = epochs[-1]["accuracy"] * 21 / 100  # of 21 test points in batches of 4: each counted once
    assert hits == pytest.approx(round(hits))
    # keep=2 newest and the best
    kept = {path.name for path in (path / "checkpoints").iterdir()}
    assert kept == {"step-000000030", "step-000000032", f"step-{summary['best']['step']:09d}"}
    out = capsys.readouterr().out
    assert "epoch 4/4" in out
    for word in ("ema_accuracy", "adan, path:", "points/s", "MiB at most", str(path)):
        assert word in out
    again = train(ToyTask(), config, "run")
    assert again == summary
    assert "is finished" in capsys.readouterr().out
    config.run.overwrite = True
    train(ToyTask(), config, "run")
    assert "epoch 4/4" in capsys.readouterr().out


def test_the_weights_of_a_run_are_those_of_its_best_checkpoint(config: TrainConfig) -> None:
    summary = train(ToyTask(), config, "run")
    best = folder(config, "run") / "checkpoints" / f"step-{summary['best']['step']:09d}"
    for kind, file in ((None, checkpoint.EMA), ("ema", checkpoint.EMA), ("model", checkpoint.MODEL)):
        weights, found = read_weights(folder(config, "run"), kind)
        stored = load_file(best / file)
        assert found.path == best
        assert weights.keys() == stored.keys()
        assert all(torch.equal(stored[key], x) for key, x in weights.items())


def test_average_is_of_the_weights(config: TrainConfig) -> None:
    config.epochs, config.batch_size, config.gradient_accumulation_steps, config.run.checkpoint_every = (
        1,
        32,
        1,
        1,
    )
    config.run.keep = 9
    train(ToyTask(), config, "run")
    first, second = sorted((folder(config, "run") / "checkpoints").iterdir())
    before, after = load_file(first / checkpoint.MODEL), load_file(second / checkpoint.MODEL)
    average = load_file(second / checkpoint.EMA)
    for key in before:
        if before[key].is_floating_point():
            torch.testing.assert_close(average[key], 0.9 * before[key] + 0.1 * after[key])


def test_the_monitor_changes_nothing_and_goes_on(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.clip_grad = 0.1
    train(ToyTask(), config, "plain")
    config.run.monitor = 1
    summary = train(ToyTask(), config, "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 13)  # the newest checkpoint is that of step 12
        with pytest.raises(StopError):
            train(ToyTask(), config, "broken")
    capsys.readouterr()
    resumed = train(ToyTask(), config, "broken")
    assert result(folder(config, "plain")) == result(folder(config, "whole"))
    assert result(folder(config, "plain")) == result(folder(config, "broken"))
    runs = [
        [json.loads(line) for line in (folder(config, name) / "monitor.jsonl").read_text().splitlines()]
        for name in ("whole", "broken")
    ]
    for samples in runs:
        assert [sample["step"] for sample in samples] == [*range(1, 33)]
        for sample in samples:
            del sample["time"], sample["memory"]
    assert runs[0] == runs[1]
    records = (folder(config, "whole") / "metrics.jsonl").read_text().splitlines()
    [loss] = [json.loads(line)["train_loss"] for line in records if '"epoch": 1,' in line]
    assert sum(sample["loss"] for sample in runs[0][:8]) / 8 == pytest.approx(loss)
    assert runs[0][0]["grad_norm"] > 0.1  # before clipping
    assert summary["monitor"][0].startswith("32 steps of fused")
    assert resumed["monitor"][0] == summary["monitor"][0]
    assert "\n".join(resumed["monitor"]) in capsys.readouterr().out


def test_lr_follows_schedule_and_group_scale(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = trainer.Trainer._set_lr

    def spy(self: trainer.Trainer) -> None:
        original(self)
        seen.append(self.state.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(trainer.Trainer, "_set_lr", spy)
    train(ToyTask(), config, "run")
    expected = [0.01 * 0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4) for _ in range(8)]
    assert seen == pytest.approx(expected)


def test_resume_with_another_configuration(config: TrainConfig) -> None:
    train(ToyTask(), config, "run")
    other = copy.deepcopy(config)
    other.batch_size = 16
    with pytest.raises(UserError, match=r"begun with batch_size=8, now it is 16; .*run.overwrite=true"):
        train(ToyTask(), other, "run")
    other = copy.deepcopy(config)
    other.workers, other.run.log_every, other.tracking.project = 1, 7, "p"
    train(ToyTask(), other, "run")  # these may change


def test_a_run_with_renamed_keys_continues(config: TrainConfig) -> None:
    """One that was begun before the keys had their names."""
    config.stop_after = 3
    summary = train(ToyTask(), config, "run")
    path = Path(config.run.root) / "toy" / "run" / "config.yaml"
    text = path.read_text()
    for old, new in (("accumulate", "gradient_accumulation_steps"), ("measure_epochs", "eval_epochs")):
        assert f"\n{new}: " in text
        text = text.replace(f"\n{new}: ", f"\n{old}: ")
    path.write_text(text)
    assert train(ToyTask(), config, "run") == summary


class DivergingTask(ToyTask):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        loss = super().loss(model, batch)
        return loss * (float("nan") if len(self.seen) > 2 * 13 else 1)  # from the 14th step on


def test_a_loss_that_is_not_finite_stops_the_run(config: TrainConfig) -> None:
    with pytest.raises(
        UserError, match=r"the loss is nan at step 13 with lr=0\.008536: .*lower optimizer\.lr"
    ):
        train(DivergingTask(), config, "run")
    newest = checkpoint.newest(folder(config, "run") / "checkpoints")
    assert newest is not None
    assert newest.name == "step-000000012"
    about = json.loads((folder(config, "run") / "diverged.json").read_text())
    assert about["step"] == 13
    assert about["message"].startswith("the loss is nan at step 13")
    assert not (folder(config, "run") / "summary.json").exists()


def test_a_full_disk_while_saving(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        original, count = saving.save_model, 0

        def full(*arguments: Any) -> None:
            nonlocal count
            count += 1
            if count > 5:
                raise OSError(28, "No space left on device")
            original(*arguments)

        patch.setattr(saving, "save_model", full)
        with pytest.raises(UserError, match=r"cannot write checkpoint .*No space left on device; .* older"):
            train(ToyTask(), config, "run")
    train(ToyTask(), config, "run")
    train(ToyTask(), config, "whole")
    assert result(folder(config, "run")) == result(folder(config, "whole"))


def test_the_file_size_limit_of_the_system(config: TrainConfig) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    try:
        with pytest.raises(UserError, match="cannot write checkpoint"):
            train(ToyTask(width=512), config, "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(folder(config, "run") / "checkpoints") == []


def test_a_second_process_is_refused(config: TrainConfig) -> None:
    path = folder(config, "run")
    path.mkdir(parents=True)
    code = "import fcntl, sys; x = open(sys.argv[1], 'w'); fcntl.lockf(x, 2); print(flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        with pytest.raises(UserError, match="another process is training in"):
            train(ToyTask(), config, "run")
    finally:
        holder.communicate(b"\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 65}, "batch_size=65: the training set has only 64 points"),
        ({"batch_size": 7}, "batch_size=7: must be divisible by gradient_accumulation_steps=2"),
        ({"epochs": 0}, "epochs=0: must be at least 1"),
        ({"clip_grad": 0.0}, "clip_grad=0.0: must be above 0"),
        ({"ema_decay": 1.0}, "ema_decay=1.0: must lie between 0 and 1"),
        ({"amp": "half"}, "amp=half: must be one of no, bf16, fp16"),
        ({"optimizer": {"name": "adan", "lr": -1.0}}, "lr"),
        ({"optimizer": {"name": "adann"}}, "adann.*adan"),
    ],
)
def test_values_that_cannot_work(config: TrainConfig, change: dict[str, Any], message: str) -> None:
    for key, value in change.items():
        setattr(config, key, value)
    with pytest.raises(UserError, match=message) as caught:
        train(ToyTask(), config, "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"amp": "bf16"}, {"clip_grad": 0.1}, {"ema_decay": None}])
def test_options_change_the_result(config: TrainConfig, change: dict[str, Any]) -> None:
    config.epochs = 1
    train(ToyTask(), config, "plain")
    for key, value in change.items():
        setattr(config, key, value)
    train(ToyTask(), config, "changed")
    assert result(folder(config, "plain")) != result(folder(config, "changed"))
