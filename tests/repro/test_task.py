"""What a task may ask of the loop: carried state, weights, its own figures and plan, a closing test."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from test_loop import StopError, result, stop_after
from torch import Tensor, nn
from toy import ToyTask
from toy_streams import SEGMENTS, STREAMS, StreamTask

from repro.errors import UserError
from repro.train import trainer
from repro.train.accelerator import keep_loss_scale
from repro.train.config import LossScaleConfig, RunConfig, SelectConfig, TrainConfig
from repro.train.trainer import train


@pytest.fixture
def streams(tmp_path: Path) -> TrainConfig:
    """Three epochs of four steps, six streams."""
    return TrainConfig(
        epochs=3,
        batch_size=STREAMS,
        optimizer={"name": "adan", "lr": 0.02},
        run=RunConfig(root=str(tmp_path / "runs"), checkpoint_every=3, log_every=1),
    )


def folder(config: TrainConfig, name: str) -> Path:
    return Path(config.run.root) / "streams" / name


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stop", [1, 3, 4, 7, 11, 12])
@pytest.mark.parametrize("parts", [1, 2])
def test_state_is_part_of_a_checkpoint(
    streams: TrainConfig, monkeypatch: pytest.MonkeyPatch, stop: int, parts: int
) -> None:
    streams.gradient_accumulation_steps = parts
    train(StreamTask(), streams, "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(StopError):
            train(StreamTask(), streams, "broken")
    train(StreamTask(), streams, "broken")
    assert result(folder(streams, "broken")) == result(folder(streams, "whole"))


def test_a_run_killed_before_its_summary_closes_once(
    streams: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(StreamTask(), streams, "whole")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "summarise", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(StreamTask(), streams, "broken")
    train(StreamTask(), streams, "broken")
    assert result(folder(streams, "broken")) == result(folder(streams, "whole"))


def test_micro_batches_are_weighed_and_keep_their_streams(streams: TrainConfig) -> None:
    """The items that count differ from stream to stream; the parts' mean of means would be another loss."""
    train(StreamTask(), streams, "whole")
    for parts in (2, 3, 6):
        streams.gradient_accumulation_steps = parts
        train(StreamTask(), streams, str(parts))
        for one, other in zip(
            records(folder(streams, "whole")), records(folder(streams, str(parts))), strict=True
        ):
            assert one == pytest.approx(other, rel=2e-5)


class Pair(NamedTuple):
    """A batch whose parts have names."""

    points: Tensor
    labels: Tensor


class PairTask(ToyTask):
    """Notes the kinds of batches that it sees, also where operations are counted on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: set[tuple[type, bool]] = set()

    def collate(self, samples: list[Any]) -> Pair:
        return Pair(*super().collate(samples))

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        self.kinds.add((type(batch), batch.points.is_meta))
        return super().loss(model, batch)

    def evaluate(self, model: nn.Module, batch: Pair) -> tuple[dict[str, Tensor], int]:
        self.kinds.add((type(batch), batch.points.is_meta))
        return super().evaluate(model, batch)


def test_a_batch_keeps_its_type(streams: TrainConfig) -> None:
    task = PairTask()
    train(task, streams, "run")
    assert task.kinds == {(Pair, False), (Pair, True)}
    pair = Pair(torch.zeros(2), torch.ones(2))
    assert type(task.move(pair, torch.device("meta"))) is Pair
    assert type(task.move([*pair], torch.device("cpu"))) is list


def test_weights_matter(streams: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    streams.gradient_accumulation_steps = 6
    train(StreamTask(), streams, "weighed")
    monkeypatch.setattr(StreamTask, "num_items", lambda self, batch: None)
    train(StreamTask(), streams, "plain")
    losses = [records(folder(streams, name))[0]["train_loss"] for name in ("weighed", "plain")]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_state_begins_empty_in_an_epoch_and_in_evaluation(
    streams: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []  # whether in training, whether there was a state
    original = StreamTask.losses

    def watched(self: StreamTask, model: Any, batch: Any) -> Any:
        if not batch[0].is_meta:
            seen.append((model.training, "hidden" in self.state))
        return original(self, model, batch)

    monkeypatch.setattr(StreamTask, "losses", watched)
    streams.epochs = 2
    train(StreamTask(), streams, "run")
    epoch = [(True, False), *[(True, True)] * (SEGMENTS - 1), (False, False), *[(False, True)] * 2]
    assert seen == [*epoch, *epoch, (False, False), (False, True)]  # the last two are the test set


def test_own_figures_and_a_closing_test(streams: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    task = StreamTask()
    summary = train(task, streams, "run")
    path = folder(streams, "run")
    *lines, closing = records(path)
    assert task.began == 1
    assert (path / "vocabulary.txt").exists()
    assert all(line["train_twice"] == 2 * line["train_loss"] for line in lines)
    assert summary["test"] == closing
    assert closing.keys() == {"step", "lr", "epoch", "weights_of_step", "test_loss", "test_count"}
    assert (closing["step"], closing["epoch"]) == (12, 3)
    measured = {line["step"]: line["valid_loss"] for line in lines if "valid_loss" in line}
    assert closing["weights_of_step"] == min(measured, key=lambda step: measured[step])
    assert summary["best"]["valid_loss"] == min(measured.values())
    # sums of any shape: that of each segment, 12 of the 18 places
    assert float(task.sums["each"].sum()) == pytest.approx(closing["test_loss"] * closing["test_count"])
    assert (task.sums["each"] != 0).sum() == 12
    assert task.sums["each"].dtype == torch.float64
    weights = load_file(path / "checkpoints" / f"step-{closing['weights_of_step']:09d}" / "model.safetensors")
    assert summary["examples"] == [f"the bias of the head is {weights['head.bias'][0]:.6f}"]
    assert summary["symbols_per_second"] > 0
    out = capsys.readouterr().out
    assert f"test_loss {closing['test_loss']:.4g}" in out
    assert f"those of step {closing['weights_of_step']}" in out
    assert summary["examples"][0] in out
    task = StreamTask()
    train(task, streams, "run")  # finished: it only says so again
    assert task.began == 0
    assert records(path) == [*lines, closing]


def test_the_closing_test_has_the_best_weights(streams: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a figure that is highest after the first epoch the best weights are early ones."""
    metrics = StreamTask.metrics

    def with_score(self: StreamTask, sums: dict[str, Any], count: float) -> dict[str, float]:
        made = metrics(self, sums, count)
        return made | {"valid_score": made["valid_loss"]}

    monkeypatch.setattr(StreamTask, "metrics", with_score)
    streams.select = SelectConfig("valid_score", higher_is_better=True)
    streams.ema_decay = 0.5
    summary = train(StreamTask(), streams, "run")
    measured = [line for line in records(folder(streams, "run")) if "valid_loss" in line]
    assert summary["metric"] == "ema_valid_score"
    best = max(measured, key=lambda line: line["ema_valid_score"])
    assert summary["best"] == best != measured[-1]
    weights = load_file(
        folder(streams, "run") / "checkpoints" / f"step-{best['step']:09d}" / "ema.safetensors"
    )
    assert summary["examples"] == [f"the bias of the head is {weights['head.bias'][0]:.6f}"]


@pytest.mark.parametrize(
    ("every", "epochs", "expected"),
    [(None, 2, [8, 12]), (None, None, [12]), (5, None, [5, 10, 12]), (5, 2, [5, 8, 10, 12])],
)
def test_when_it_is_evaluated(
    streams: TrainConfig, every: int | None, epochs: int | None, expected: list[int]
) -> None:
    streams.eval_every, streams.eval_epochs = every, epochs
    train(StreamTask(), streams, "run")
    assert [line["step"] for line in records(folder(streams, "run")) if "valid_loss" in line] == expected


def test_training_records_are_means_over_epochs_ends(streams: TrainConfig) -> None:
    """With log_every=3 the second record is of the steps 4 to 6, of two epochs of four steps."""
    streams.eval_epochs = None
    train(StreamTask(), streams, "each")
    streams.run.log_every = 3
    train(StreamTask(), streams, "thirds")
    each = [line["train_loss"] for line in records(folder(streams, "each")) if "train_loss" in line]
    thirds = records(folder(streams, "thirds"))
    assert [line["step"] for line in thirds[:3]] == [3, 6, 9]
    for index, line in enumerate(thirds[:3]):
        assert line["train_loss"] == pytest.approx(sum(each[3 * index : 3 * index + 3]) / 3, rel=1e-6)


def test_a_run_that_stops_early_is_the_beginning_of_a_whole_one(streams: TrainConfig) -> None:
    train(StreamTask(), streams, "whole")
    streams.stop_after = 6
    assert train(StreamTask(), streams, "stopped")["steps"] == 6
    whole, stopped = (records(folder(streams, name)) for name in ("whole", "stopped"))
    assert stopped[:5] == whole[:5]
    assert stopped[5]["lr"] == whole[5]["lr"]
    assert "valid_loss" in stopped[5]


def test_max_epochs(streams: TrainConfig) -> None:
    streams.schedule.per = "step"
    streams.steps, streams.max_epochs = 100, 2
    summary = train(StreamTask(), streams, "run")
    assert summary["steps"] == 8
    assert records(folder(streams, "run"))[7]["lr"] > 0.019  # the schedule is that of 100 steps
    streams.max_epochs = 50
    streams.steps = 6
    assert train(StreamTask(), streams, "short")["steps"] == 6
    streams.steps = None
    with pytest.raises(UserError, match="max_epochs=50: is for a run in steps; set epochs instead"):
        train(StreamTask(), streams, "wrong")


def test_an_unknown_metric_to_select_by(streams: TrainConfig) -> None:
    streams.select = SelectConfig("valid_matthews", higher_is_better=True)
    with pytest.raises(UserError, match=r"select.metric=valid_matthews: there is .*valid_loss, valid_count"):
        train(StreamTask(), streams, "run")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LossScaleConfig(initial=0.0), "loss_scale.initial=0.0: must be above 0"),
        (LossScaleConfig(threshold=-1.0), "loss_scale.threshold=-1.0: must be above 0"),
        (LossScaleConfig(growth_interval=0), "loss_scale.growth_interval=0: must be at least 1"),
    ],
)
def test_bad_loss_scales(streams: TrainConfig, config: LossScaleConfig, message: str) -> None:
    streams.loss_scale = config
    with pytest.raises(UserError, match=message):
        streams.check()


def test_the_loss_scale_has_a_floor() -> None:
    """As fairseq's: not below the threshold, and an error at the minimum. A scaler on the CPU stands in."""

    def step(config: LossScaleConfig, finite: bool) -> float:
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        scaler = torch.amp.GradScaler(
            "cpu", init_scale=config.initial, growth_interval=config.growth_interval
        )
        for _ in range(4):
            scaler.scale(weight * (1.0 if finite else float("inf"))).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            keep_loss_scale(SimpleNamespace(scaler=scaler), config, step=7)
        return float(scaler.get_scale())

    assert step(LossScaleConfig(initial=4.0), finite=False) == 0.25
    assert step(LossScaleConfig(initial=4.0, threshold=1.0), finite=False) == 1.0
    assert step(LossScaleConfig(initial=4.0, growth_interval=2, threshold=1.0), finite=True) == 16.0
    with pytest.raises(UserError, match=r"at step 7 gradients overflow with losses times 0\.5"):
        step(LossScaleConfig(initial=4.0, minimum=0.5), finite=False)
