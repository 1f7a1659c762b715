"""Runs and logs against released curves: the toy task in the loop, and what is there of released logs."""

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_loop import StopError, folder, stop_after
from toy import ToyTask

from repro.ledger import rows, tracking
from repro.ledger.rows import Figure, File, Row, Sibling
from repro.logs import read
from repro.logs.files import read_log
from repro.logs.log import Log, LogError
from repro.logs.timm import BCE
from repro.train import trainer
from repro.train.config import TrainConfig
from repro.train.trainer import train

LOG = "logs/summary.csv"


def write(records: list[dict[str, Any]], path: Path) -> None:
    lines = ["epoch,train_loss,eval_loss,eval_top1,eval_top5"]
    for record in records:
        lines.append(f"{record['epoch'] - 1},{record['train_loss']},1.0,{record['accuracy']},100")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def release(row: Row, records: list[dict[str, Any]], root: Path) -> None:
    """Write the log that was released with a row."""
    write(records, root / LOG)
    row.files[:] = [File(LOG, hashlib.sha256((root / LOG).read_bytes()).hexdigest())]


def measured(config: TrainConfig, name: str) -> list[dict[str, Any]]:
    lines = (folder(config, name) / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "accuracy" in record]


@pytest.fixture
def row() -> Row:
    return Row(
        name="toys/net",
        table="toys",
        script="toy.py",
        published=[
            Figure("accuracy", 70.1, "%", column="eval_top1", best=70.2, final=70.1),
            Figure("valid_loss", 1.5, "bits", False),
        ],
        files=[File(LOG, "0")],
        track={"accuracy": "eval_top1", "train_loss": "train_loss"},
    )


@pytest.fixture
def run(config: TrainConfig, row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """The configuration of a run that names the row, whose released log is that of such a run."""
    monkeypatch.setenv("ADAN_RELEASED", str(tmp_path))
    config.epochs = 6
    train(ToyTask(), config, "released")
    release(row, measured(config, "released"), tmp_path)
    config.row = row
    return config


def improve(run: TrainConfig, tmp_path: Path) -> None:
    """Let the released run have had half of the loss."""
    assert run.row is not None
    halved = [{**r, "train_loss": r["train_loss"] / 2} for r in measured(run, "released")]
    release(run.row, halved, tmp_path)


def test_a_run_like_the_released_one(
    run: TrainConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[dict[str, str]] = []
    monkeypatch.setattr(trainer.tqdm, "set_postfix", lambda self, shown: bars.append(shown))
    summary = train(ToyTask(), run, "run")
    records = measured(run, "run")
    for record in records:
        assert record["released_accuracy"] == pytest.approx(record["accuracy"], abs=1e-3)
        assert record["released_train_loss"] == pytest.approx(record["train_loss"])
        assert record["verdict"] == "on track"
    lines = (folder(run, "run") / "metrics.jsonl").read_text().splitlines()
    between = [json.loads(line) for line in lines if "accuracy" not in json.loads(line)]
    assert between
    assert not any("verdict" in record for record in between)  # of which the log has none
    paper = summary["paper"]
    assert (paper["row"], paper["verdict"], paper["untracked"]) == ("toys/net", "on track", None)
    figure, unmeasured = paper["figures"]
    final = summary["final"]["accuracy"]
    assert (figure["published"], figure["released_best"], figure["released_final"]) == (70.1, 70.2, 70.1)
    assert (figure["best"], figure["final"]) == (summary["best"]["accuracy"], final)
    assert figure["difference"] == pytest.approx(final - 70.1)
    assert (unmeasured["final"], unmeasured["verdict"]) == (None, None)
    shown = capsys.readouterr().out
    assert f"accuracy {final:.4g} (released {final:.4g})" in shown
    assert "on track" in shown
    assert "paper      toys/net, the run against the released curve: on track" in shown
    assert "verdict" not in bars[0]  # before the first measurement
    assert bars[-1]["verdict"] == "on track"


def test_a_run_that_is_worse(run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    improve(run, tmp_path)
    summary = train(ToyTask(), run, "run")
    records = measured(run, "run")
    assert [record["verdict"] for record in records] == ["on track"] * 2 + ["behind"] * 4
    assert summary["paper"]["verdict"] == "behind"
    assert "behind in train_loss" in capsys.readouterr().out


@pytest.mark.parametrize("stop", [9, 16, 25, 41])
def test_a_resumed_run_says_the_same(
    run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    improve(run, tmp_path)
    train(ToyTask(), run, "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(StopError):
            train(ToyTask(), run, "broken")
    resumed = train(ToyTask(), run, "broken")
    whole, broken = (folder(run, name) / "metrics.jsonl" for name in ("whole", "broken"))
    assert broken.read_bytes() == whole.read_bytes()
    assert resumed["paper"]["verdict"] == "behind"


def test_a_log_that_is_not_here(run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tmp_path / "logs")
    summary = train(ToyTask(), run, "run")
    assert not any("verdict" in record for record in measured(run, "run"))
    assert summary["paper"]["verdict"] is None
    assert summary["paper"]["figures"][0]["released_best"] == 70.2
    out = capsys.readouterr().out
    told = [line for line in out.splitlines() if line.startswith("not tracked: ")]
    assert len(told) == 1
    assert "python scripts/logs.py get" in told[0]
    assert "accuracy: published 70.1 %, released log best 70.2 final 70.1, ours best" in out


def test_a_proxy_is_not_compared(run: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.row is not None
    run.row.scale = "proxy"
    summary = train(ToyTask(), run, "run")
    assert "figures" not in summary["paper"]
    assert not any("verdict" in record for record in measured(run, "run"))
    assert "toys/net as a proxy: its numbers are not the paper's" in capsys.readouterr().out


def test_without_a_row_nothing_is_said(config: TrainConfig) -> None:
    assert "paper" not in train(ToyTask(), config, "run")


# Logs


def a_log(columns: dict[str, list[float]], record: str = "epoch", **more: Any) -> Log:
    table = pd.DataFrame({"record": record, "segment": 0, "file": 0, "line": 1, **columns})
    return Log(more.pop("format", "timm"), [Path("x")], table, more.pop("units", {"eval_top1": "%"}))


def steps(record: str, loss: list[float], every: int, unit: str = "bits") -> Log:
    positions = [every * (index + 1) for index in range(len(loss))]
    name = "train_loss" if record == "train" else "eval_loss"
    return a_log({"step": positions, name: loss}, record, format="fairseq", units={name: unit})


def use(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    monkeypatch.setattr(tracking, "read_log", lambda row: log)


LOSS = [10 / (index + 1) for index in range(50)]


def test_records_are_in_the_unit_of_their_row(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    row.track, row.published = {"train_loss": "train_loss"}, [Figure("valid_loss", 2.0, "bits", False)]
    use(monkeypatch, steps("train", LOSS, 10))
    tracker = tracking.Tracker(row, {})
    for index, loss in enumerate(LOSS):
        record = {"step": 10 * (index + 1), "epoch": 0.5, "train_loss": loss}
        assert tracker.compare(record, measured=True) == {}  # the mean of an epoch, not of some steps
        added = tracker.compare(record, measured=False)
        assert added["verdict"] == "on track"
        assert added["released_train_loss"] == pytest.approx(record["train_loss"])
    summary = tracker.summarise({"valid_loss": 2.01}, None)
    assert summary is not None
    assert summary["figures"][0]["final"] == pytest.approx(2.01)
    assert summary["figures"][0]["verdict"] == "on track"


def test_a_log_is_compared_by_its_names_or_by_ours(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    row.track = {"accuracy": "eval_top1"}
    released = a_log({"epoch": [*range(10)], "eval_top1": [10.0 * (i + 1) - i for i in range(10)]})
    use(monkeypatch, released)
    for name in ("eval_top1", "accuracy"):
        ours = a_log({"epoch": [*range(10)], name: [9.0 * (i + 1) - 20 * (i > 4) for i in range(10)]})
        frame = tracking.compare_log(row, ours)
        assert list(frame) == ["position", "column", "ours", "released", "low", "high", "verdict"]
        assert frame["position"].tolist() == [*range(1, 11)]
        assert ((frame["low"] <= frame["released"]) & (frame["released"] <= frame["high"])).all()
        assert frame["verdict"].tolist() == ["on track"] * 7 + ["behind"] * 3
        assert tracking.verdict(frame) == "behind"
    with pytest.raises(LogError, match=r"x: nothing to compare with toys/net, which has eval_top1"):
        tracking.compare_log(row, a_log({"epoch": [1], "other": [1.0]}))


def test_nan_in_a_log_is_diverged(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    row.track = {"train_loss": "train_loss"}
    use(monkeypatch, steps("train", LOSS, 10))
    frame = tracking.compare_log(row, steps("train", [*LOSS[:9], math.nan], 10, "nats"))
    assert tracking.verdict(frame) == "diverged"
    assert frame["ours"][0] == pytest.approx(10 / math.log(2))  # in the released log's unit


def test_other_quantities_are_not_compared(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    row.track = {"train_loss": "train_loss", "accuracy": "eval_top1"}
    values = {"epoch": [*range(10)], "eval_top1": [10.0] * 10, "train_loss": [1.0] * 10}
    use(monkeypatch, a_log(values, units={"eval_top1": "%", "train_loss": BCE}))
    frame = tracking.compare_log(row, a_log(values, units={"eval_top1": "%", "train_loss": "nats"}))
    assert set(frame["column"]) == {"eval_top1"}
    assert frame.attrs["left_out"] == [
        f"train_loss is not compared: it is in nats, the released one in {BCE}"
    ]
    for unit in (BCE, "as logged", "the training loss's own"):  # the same, or perhaps
        frame = tracking.compare_log(row, a_log(values, units={"eval_top1": "%", "train_loss": unit}))
        assert (set(frame["column"]), frame.attrs["left_out"]) == ({"eval_top1", "train_loss"}, [])
    with pytest.raises(LogError, match=r"nothing to compare with toys/net, .*; train_loss is not compared"):
        tracking.compare_log(row, a_log({"epoch": [0], "train_loss": [1.0]}, units={"train_loss": "nats"}))


def test_text_is_not_compared(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, steps("train", LOSS, 10))
    row.track = {"train_loss": "train_loss"}
    log = a_log({"step": [10]}, "train")
    log.table["train_loss"] = "high"
    with pytest.raises(LogError, match="nothing to compare"):
        tracking.compare_log(row, log)


def test_a_log_without_the_position(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, steps("train", LOSS, 10))
    with pytest.raises(LogError, match="x: no column step, by which toys/net is compared"):
        tracking.compare_log(row, a_log({"epoch": [1], "train_loss": [1.0]}))


def test_track_must_fit_the_log(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, steps("train", LOSS, 10))
    assert "no column eval_top1; it has train_loss" in (tracking.Tracker(row, {}).untracked or "")
    row.track = {}
    assert "row.track names no column" in (tracking.Tracker(row, {}).untracked or "")


def test_siblings_set_the_tolerance(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    row.track = {"train_loss": "train_loss"}
    other = [loss * (1.04 if index < 30 else 2) for index, loss in enumerate([5.0] * 50)]
    row.siblings = [Sibling("toys/other", until=300)]
    logs = {"toys/net": steps("train", [5.0] * 50, 10), "toys/other": steps("train", other, 10)}
    monkeypatch.setattr(tracking, "read_log", lambda row: logs[row.name])
    monkeypatch.setattr(tracking, "load", lambda name: rows.Recipe(Row(name=name), {}))

    def tolerance() -> float:
        return tracking.curves(row, logs["toys/net"])["train_loss"].tolerance

    assert tolerance() == pytest.approx(0.04)  # what comes after `until` does not count
    logs["toys/other"] = steps("train", [5.001] * 50, 10)
    assert tolerance() == 0.01
    logs["toys/other"] = steps("train", [5.0] * 50, 10)  # one run's log: nothing differs
    assert tolerance() == 0.015


# Released logs


def test_every_released_log_is_on_its_own_track(released: Path) -> None:
    compared = 0
    for name in rows.names():
        if not name.startswith(("imagenet/vit_s", "imagenet/resnet101", "mae/", "wikitext103/adan_100k")):
            continue  # benchmarks/tracking_study.py has them all
        row = rows.load(name).row
        try:
            log = read_log(row)
        except LogError:
            continue
        frame = tracking.compare_log(row, log)
        assert set(frame["verdict"]) == {"on track"}, name
        assert tracking.verdict(frame) == "on track"
        compared += 1
    assert compared >= 7


def test_a_slower_run_is_noticed_in_its_first_epochs(released: Path, tmp_path: Path) -> None:
    row = rows.load("imagenet/vit_s_150").row
    log = read_log(row)
    late = log.table.copy()
    for column in ("train_loss", "eval_loss", "eval_top1"):
        late[column] = log.table[column].shift(3, fill_value=log.table[column][0])  # three epochs late
    late.drop(columns=["record", "segment", "file", "line"]).to_csv(tmp_path / "late.csv", index=False)
    frame = tracking.compare_log(row, read(tmp_path / "late.csv"))
    assert frame["position"][frame["verdict"] == "behind"].min() <= 8


def test_a_sibling_is_on_track_while_the_settings_agree(released: Path) -> None:
    row = rows.load("imagenet/resnet101_100").row
    assert tracking.curves(row, read_log(row))["train_loss"].tolerance > 0.015  # as two seeds differ
    frame = tracking.compare_log(row, read_log(rows.load("imagenet/resnet101_200").row))
    assert set(frame["verdict"][frame["position"] <= 40]) == {"on track"}
    assert tracking.verdict(frame) == "behind"
