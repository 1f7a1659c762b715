"""Readers of what people's own runs leave, on files that the libraries themselves wrote just now."""

import copy
import gzip
import json
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toy import ToyTask

from repro.logs import FORMATS, Log, LogError, Source, read, recognise, timm
from repro.logs import tensorboard as tensorboard_reader
from repro.logs import wandb as wandb_reader
from repro.logs.gather import Columns, column, find, number, whole
from repro.train.config import RunConfig, ScheduleConfig, TrainConfig
from repro.train.trainer import train

# what the libraries write


@pytest.fixture(scope="session")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of our loop: four epochs of eight steps, a record every two."""
    root = tmp_path_factory.mktemp("own")
    config = TrainConfig(
        epochs=4,
        batch_size=8,
        optimizer={"name": "adan", "lr": 0.01},
        run=RunConfig(root=str(root), log_every=2),
    )
    train(ToyTask(), config, "run")
    return root / "toy" / "run"


@pytest.fixture(scope="session")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The output folder of Hugging Face's Trainer after three epochs of four steps, and its log_history."""
    from transformers import Trainer, TrainingArguments

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(2, 1)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.line(x).squeeze(1)
            return {"loss": (y - labels).square().mean(), "logits": y}

    data: Any = [{"x": torch.tensor([i / 16, 1.0]), "labels": torch.tensor(i / 8)} for i in range(16)]
    out = tmp_path_factory.mktemp("trainer") / "out"
    arguments = TrainingArguments(
        str(out),
        num_train_epochs=3,
        per_device_train_batch_size=4,
        logging_steps=2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(Line(), arguments, train_dataset=data, eval_dataset=data[:4])
    trainer.train()
    return out, trainer.state.log_history


@pytest.fixture(scope="session")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the event files of a run that stopped after step 40 and went on from 30."""
    from torch.utils.tensorboard import SummaryWriter

    folder = tmp_path_factory.mktemp("events")
    for index, steps in enumerate((range(0, 50, 10), range(30, 70, 10))):
        writer: Any = SummaryWriter(str(folder), filename_suffix=f".{index}")
        for step in steps:
            writer.add_scalar("train/loss", 1 / (1 + step + index), step)
            writer.add_scalar("train/learning_rate", 3e-4, step, new_style=True)
            writer.add_scalar("train/epoch", step / 20, step)
            writer.add_scalar("speed", 0.1, step, double_precision=True)
        writer.add_scalar("Loss/val", 0.7 - index / 10, 40)
        writer.add_text("note", "text", 40)
        writer.close()
    return folder


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which wandb logged a run offline, with one record longer than a block."""
    import wandb

    folder = tmp_path_factory.mktemp("offline")
    logged = wandb.init(
        mode="offline",
        dir=str(folder),
        project="test",
        config={"lr": 0.1, "optimizer": {"name": "adan", "betas": [0.98, 0.92, 0.99]}},
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    )
    for step in range(5):
        row = {"train/loss": 1 / (step + 1), "learning_rate": 0.1, "norms": {"a": step}, "epoch": step / 2}
        if step == 2:
            row |= {"sample": "long " * 20_000}
        if step == 4:
            row |= {"eval/loss": 0.5, "eval/accuracy": 80.0, "odd": math.nan}
        logged.log(row, step=10 * step)
    logged.finish()
    wandb.teardown()  # else its process may still be writing
    return folder


def file_of(folder: Path) -> Path:
    return next(path for path in sorted(folder.rglob("*")) if path.is_file() and recognised(path))


def recognised(path: Path) -> str | None:
    try:
        return recognise(Source(path)).name
    except LogError:
        return None


# our own runs


def test_own_run(own_run: Path) -> None:
    log = read(own_run, strict=True)
    written = [json.loads(line) for line in (own_run / "metrics.jsonl").read_text().splitlines()]
    assert log.format == "run"
    assert log.lines == {"record": len(written)}
    assert log.table["record"].value_counts().to_dict() == {"train": 12, "epoch": 4}
    assert log.of("epoch")["epoch"].to_list() == [1, 2, 3, 4]
    for row, record in zip(log.table.to_dict("records"), written, strict=True):
        assert {key: row[key] for key in record} == record
    assert log.config["optimizer.lr"] == 0.01
    assert log.units["accuracy"] == "%"
    assert [event["what"] for event in log.events] == ["start", "finished"]
    assert read(own_run / "metrics.jsonl").table.equals(log.table)


def test_a_record_that_a_kill_cut_off(own_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes((own_run / "metrics.jsonl").read_bytes()[:-9])
    log = read(path)
    assert log.lines == {"record": 15, "fault": 1}
    assert log.faults == [
        f"{path}:16: the last line is incomplete: it was being written (continuing drops it)"
    ]
    with pytest.raises(LogError, match=r"^1 .*: .*metrics.jsonl:16: the last line"):
        read(path, strict=True)


def test_own_records_that_are_none(own_run: Path, tmp_path: Path) -> None:
    lines = (own_run / "metrics.jsonl").read_text().splitlines()
    lines[2] = '{"step": 4}'
    lines[3] = lines[3].replace('"step": 8', '"step": "eight"')
    lines[4] = "[" * 100_000
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, "", ""]))
    (tmp_path / "config.yaml").write_text("a: [")
    (tmp_path / "summary.json").write_text("{")
    log = read(tmp_path)
    assert log.lines == {"record": 13, "fault": 3, "other": 1}
    assert [fault.split(": ", 1)[1][:24] for fault in log.faults] == [
        "not a JSON object with s",
        'step is no number ("eigh',
        "not JSON (nested too dee",
    ]
    assert [oddity.split(": ")[0] for oddity in log.oddities] == [
        str(tmp_path / "config.yaml"),
        str(tmp_path / "summary.json"),
    ]


def test_a_measurement_amid_an_epoch_of_a_run_with_clipping(tmp_path: Path) -> None:
    config = TrainConfig(
        steps=20,
        eval_every=6,
        batch_size=8,
        clip_grad=1.0,
        optimizer={"name": "adan", "lr": 0.01},
        schedule=ScheduleConfig(per="step"),
        run=RunConfig(root=str(tmp_path), log_every=5),
    )
    train(ToyTask(), config, "run")
    log = read(tmp_path / "toy" / "run")
    kinds = dict(zip(log.table["step"], log.table["record"], strict=True))
    trained = dict.fromkeys((5, 10, 15), "train")
    assert kinds == trained | {6: "eval", 8: "epoch", 12: "eval", 16: "epoch", 18: "eval", 20: "eval"}
    assert log.of("train")["grad_norm"].notna().all()


def test_the_unit_of_a_loss_is_that_of_the_configuration(own_run: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes((own_run / "metrics.jsonl").read_bytes())
    for config, unit in (
        ("loss: bce", timm.BCE),
        ("loss: ce", "nats"),
        ("loss: ce\naugment: {mixup: 0.8}", timm.CE),
        ("lr: 1", "the training loss's own"),
    ):
        (tmp_path / "config.yaml").write_text(config)
        assert read(tmp_path).units["train_loss"] == unit


def test_what_trackers_left_in_a_run_is_no_further_run(own_run: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes((own_run / "metrics.jsonl").read_bytes())
    for part in (
        "wandb/offline-run-1/run-a.wandb",
        "wandb/offline-run-2/run-b.wandb",
        "a/tfevents.1",
        "b/tfevents.2",
    ):
        (tmp_path / part).parent.mkdir(parents=True)
        (tmp_path / part).touch()
    assert read(tmp_path).format == "run"
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"loss": 1.0, "step": 1}]}')
    assert read(tmp_path).format == "huggingface"


def test_metrics_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1.0, "step": 1}\n')
    with pytest.raises(LogError, match=r"a folder, and not one that holds a log .*; name the log itself"):
        read(tmp_path)
    assert read(tmp_path / "metrics.jsonl").format == "jsonl"
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(LogError, match=r"metrics.jsonl: the file is empty"):
        read(tmp_path)


# Hugging Face


def test_trainer_state(trainer: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, history = trainer
    log = read(folder, strict=True)
    assert log.paths == [folder / "checkpoint-12" / "trainer_state.json"]
    assert log.lines == {"record": 9}
    training = log.of("train")
    losses = [entry for entry in history if "loss" in entry]
    for ours, theirs in (("train_loss", "loss"), ("lr", "learning_rate"), ("grad_norm", "grad_norm")):
        assert training[ours].to_list() == [entry[theirs] for entry in losses]
    evaluations = [entry for entry in history if "eval_loss" in entry]
    assert log.series("eval_loss").to_dict() == {e["step"]: e["eval_loss"] for e in evaluations}
    assert log.of("eval")["epoch"].to_list() == [1, 2, 3]
    (best,) = log.events
    assert best["what"] == "best"
    assert best["best_metric"] == min(entry["eval_loss"] for entry in evaluations)
    assert log.config["num_train_epochs"] == 3
    lines = log.paths[0].read_text().splitlines()
    assert [lines[line - 1].strip() for line in log.table["line"]] == ["{"] * 9


def test_the_closing_entry_is_no_record(trainer: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    _, history = trainer
    path = tmp_path / "trainer_state.json"
    again = [{"step": 4, "eval_other_loss": 2.0}, {"step": 4, "loss": 9.0}, {"step": 4, "note": "text"}]
    path.write_text(json.dumps({"log_history": history + again, "best_metric": None}))
    log = read(path)
    assert log.lines == {"record": 11, "other": 2}
    assert [event["what"] for event in log.events] == ["end of training"]
    assert log.events[0]["train_loss"] == history[-1]["train_loss"]
    at4 = log.table[log.table["step"] == 4].set_index("record")
    assert at4.loc["eval", "eval_other_loss"] == 2  # in addition to that of the first data set
    assert at4.loc["eval", "eval_loss"] == next(e["eval_loss"] for e in history if "eval_loss" in e)
    assert at4.loc["train", "train_loss"] == 9
    assert log.repeated == 1
    assert any("note is no number" in oddity for oddity in log.oddities)


def test_the_newest_state_is_the_one_that_got_furthest(
    trainer: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    folder, _ = trainer
    state = (folder / "checkpoint-12" / "trainer_state.json").read_text()
    for name, step in (("checkpoint-9", 9), ("checkpoint-10", 10), (".", 4)):
        (tmp_path / name).mkdir(exist_ok=True)
        changed = state.replace('"global_step": 12', f'"global_step": {step}')
        (tmp_path / name / "trainer_state.json").write_text(changed)
    assert read(tmp_path).paths == [tmp_path / "checkpoint-10" / "trainer_state.json"]


def test_damaged_trainer_state(trainer: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    text = (trainer[0] / "checkpoint-12" / "trainer_state.json").read_text()
    path = tmp_path / "trainer_state.json"
    path.write_text(text[: text.index('"loss"', text.index('"step": 6'))])
    log = read(path)
    assert log.lines["fault"] == 1
    assert log.table["step"].max() == 6
    begin = 3 + text.count("\n", 0, text.index('"step": 6'))  # of the entry after
    assert log.faults[0].startswith(f"{path}:{begin}: the entry of log_history that begins here is damaged")
    path.write_text(text.replace('"grad_norm"', '"grad_norm', 1))  # one entry; those after it are sound
    assert read(path).lines == {"record": 8, "fault": 1}
    path.write_text(text[:-20])
    log = read(path)
    assert log.lines == {"record": 9, "fault": 1}
    assert "its settings are lost" in log.faults[0]
    path.write_text(text.replace('"step": 6', '"step": 6.5').replace('"step": 2', '"step": true'))
    assert read(path).lines == {"record": 7, "fault": 2}
    path.write_text('{"log_history": []}')
    with pytest.raises(LogError, match=r"trainer_state.json: no record in it"):
        read(path)


# TensorBoard


def test_event_files(events: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    log = read(events, strict=True)
    paths = sorted(events.iterdir())
    assert log.paths == paths
    assert log.lines.total() == sum(len(list(EventFileLoader(str(path)).Load())) for path in paths)
    assert log.lines == {"record": 4 * 9 + 2, "other": 4}  # a file begins with its version
    assert log.resumes == 1
    assert log.repeated == 3  # steps 30 and 40, and the evaluation at 40
    second = EventAccumulator(str(paths[1]))
    second.Reload()
    resumed = log.table[log.table["segment"] == 1]
    for tag, column_ in (("train/loss", "train_loss"), ("train/learning_rate", "lr")):
        values = second.Tensors(tag) if tag.endswith("rate") else second.Scalars(tag)
        assert resumed.dropna(subset=[column_])["step"].to_list() == [value.step for value in values]
    assert resumed.dropna(subset=["train_loss"])["train_loss"].to_list() == pytest.approx(
        [scalar.value for scalar in second.Scalars("train/loss")], rel=1e-7
    )
    training = log.of("train").set_index("step")
    assert training.index.to_list() == [0, 10, 20, 30, 40, 50, 60]
    assert training["lr"].to_list() == [3e-4] * 7  # exactly: the shortest decimal of the float32
    assert training["speed"].to_list() == [0.1] * 7
    assert training["epoch"].to_list() == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert training["file"].to_list() == [0, 0, 0, 1, 1, 1, 1]
    evaluation = log.of("eval").iloc[0]
    assert (evaluation["step"], evaluation["epoch"], evaluation["eval_loss"]) == (40, 2, 0.6)
    assert [(event["what"], event["file"]) for event in log.events] == [("text", 0), ("text", 1)]


def test_files_with_other_tags_are_no_resume(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for index, tag in enumerate(("train/loss", "train/grad_norm")):
        writer: Any = SummaryWriter(str(tmp_path), filename_suffix=f".{index}")
        writer.add_scalar(tag, 1.0, 5)
        writer.close()
    log = read(tmp_path)
    assert log.resumes == 0
    assert log.table[["train_loss", "grad_norm"]].to_numpy().tolist() == [[1, 1]]


def test_damaged_event_file(events: Path, tmp_path: Path) -> None:
    path = sorted(events.iterdir())[0]
    data = path.read_bytes()
    whole_ = read(path)
    total = whole_.lines.total()
    torn = tmp_path / path.name
    torn.write_bytes(data[:-3])
    log = read(torn)
    assert log.lines["fault"] == 1
    assert log.lines.total() == total
    assert f"{torn}:{total}: event {total}: the file ends within it" in log.faults[0]
    at = data.index(b"train/loss")
    torn.write_bytes(data[:at] + b"T" + data[at + 1 :])
    log = read(torn)
    assert log.lines["fault"] == 1
    assert log.lines.total() == total  # the events after it are kept
    assert "event 2: damaged at byte" in log.faults[0]
    torn.write_bytes(data[:at] + data[at + 1 :])
    with pytest.raises(
        LogError, match=r"no record in it that could be read; first fault: .*:2: event 2: dam"
    ):
        read(torn)
    torn.write_bytes(gzip.compress(data))
    assert read(torn).table.equals(whole_.table)


def test_several_runs_are_not_mixed(events: Path, tmp_path: Path) -> None:
    content = sorted(events.iterdir())[0].read_bytes()
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "events.out.tfevents.1").write_bytes(content)
    with pytest.raises(LogError, match=r"2 runs are in it \(.*a, .*b\); name one"):
        read(tmp_path)
    (tmp_path / "runs" / "b" / "events.out.tfevents.1").unlink()
    assert read(tmp_path).format == "tensorboard"
    assert find(tmp_path, "nothing*") == []


# wandb


def test_offline_run(offline: Path) -> None:
    log = read(offline, strict=True)
    assert log.format == "wandb"
    assert log.paths[0].suffix == ".wandb"
    assert log.paths[0].stat().st_size > 3 * 32768
    assert log.lines["record"] == 5
    training = log.of("train")
    assert training["step"].to_list() == [0, 10, 20, 30, 40]
    assert training["train_loss"].to_list() == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert training["lr"].to_list() == [0.1] * 5
    assert training["norms.a"].to_list() == [0, 1, 2, 3, 4]
    evaluation = log.of("eval").iloc[0]
    assert (evaluation["epoch"], evaluation["eval_loss"], evaluation["eval_accuracy"]) == (2, 0.5, 80)
    assert log.config == {"lr": 0.1, "optimizer": {"name": "adan", "betas": [0.98, 0.92, 0.99]}}
    assert [event["what"] for event in log.events] == ["exit", "str value"]
    assert any("odd is nan" in oddity for oddity in log.oddities)
    for path in (log.paths[0], log.paths[0].parent, log.paths[0].parent.parent):
        assert read(path).table.equals(log.table)


def test_killed_offline_run(offline: Path, tmp_path: Path) -> None:
    data = file_of(offline).read_bytes()
    path = tmp_path / "run-1.wandb"
    path.write_bytes(data[:-5])
    log = read(path)
    assert log.lines["record"] == 5
    assert log.faults == [f"{path}:{log.lines.total()}: record {log.lines.total()}: the file ends within it"]
    assert any("the run has no end" in oddity for oddity in log.oddities)


def test_damaged_block_of_an_offline_run(offline: Path, tmp_path: Path) -> None:
    data = bytearray(file_of(offline).read_bytes())
    blocks = -(-len(data) // 32768)
    place = max(block for block in range(blocks) if data[32768 * block + 6] == 3) * 32768  # of the long row
    data[place + 10_000] ^= 1
    path = tmp_path / "run-1.wandb"
    path.write_bytes(data)
    log = read(path)
    assert log.lines["fault"] == 1
    assert f"damaged at byte {place}; the rest of the block (32768 bytes) is left out" in log.faults[0]
    assert log.of("train")["step"].to_list() == [0, 10, 30, 40]


def history(index: int, **values: object) -> bytes:
    """Return a row of wandb's history."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    record = Record()
    record.history.step.num = index
    for key, value in {"_step": index, **values}.items():
        record.history.item.add(key=key.replace("__", "/"), value_json=json.dumps(value))
    return bytes(record.SerializeToString())


def test_segments_of_a_resumed_offline_run(tmp_path: Path) -> None:
    for part, steps in ((1, (0, 1, 2)), (2, (2, 3))):
        path = tmp_path / "wandb" / f"offline-run-{part}" / "run-a.wandb"
        path.parent.mkdir(parents=True)
        path.write_bytes(frame_wandb([history(step, train__loss=float(part)) for step in steps]))
    log = read(tmp_path)
    assert (log.resumes, log.repeated, len(log.paths)) == (1, 1, 2)
    assert log.series("train_loss").to_dict() == {0: 1, 1: 1, 2: 2, 3: 2}
    path.rename(path.with_name("run-b.wandb"))
    with pytest.raises(LogError, match=r"2 runs are in it .*; name one of them, or the parts"):
        read(tmp_path)


def test_steps_that_a_framework_logged(tmp_path: Path) -> None:
    rows = [
        history(0, train__loss=1.0, train__global_step=500),
        history(1, eval__loss=2.0, train__global_step=500),
    ]
    path = tmp_path / "run-1.wandb"
    path.write_bytes(frame_wandb(rows))
    assert read(path).table[["record", "step"]].to_numpy().tolist() == [["train", 500], ["eval", 500]]
    path.write_bytes(frame_wandb([*rows, history(2, train__loss=1.0)]))
    assert read(path).table[["record", "step"]].to_numpy().tolist() == [
        ["train", 0],
        ["eval", 1],
        ["train", 2],
    ]
    path.write_bytes(frame_wandb([*rows, history(2, train__loss=1.0, _step="x")]))
    assert read(path).faults[0].endswith("record 3: _step is no step (x)")


# what they share


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("loss", "train_loss"),
        ("train/loss", "train_loss"),
        ("Loss/train", "train_loss"),
        ("training_loss", "train_loss"),
        ("val_loss", "eval_loss"),
        ("eval/loss", "eval_loss"),
        ("Loss/val", "eval_loss"),
        ("validation/perplexity", "eval_ppl"),
        ("test_loss", "test_loss"),
        ("perplexity", "train_ppl"),
        ("learning_rate", "lr"),
        ("train/lr", "lr"),
        ("LR", "lr"),
        ("train/grad_norm", "grad_norm"),
        ("train/epoch", "epoch"),
        ("eval/accuracy", "eval_accuracy"),
        ("val/acc1", "eval_top1"),
        ("train/accuracy", "train/accuracy"),
        ("train_runtime", "train_runtime"),
        ("valence/loss", "valence/loss"),
        ("Temperature", "Temperature"),
    ],
)
def test_names_of_columns(tag: str, name: str) -> None:
    assert column(tag) == name


def test_no_two_tags_share_a_column() -> None:
    columns = Columns()
    tags = ["train/loss", "loss", "train_loss", "segment", "step", "record", "epoch"]
    names = [columns[tag] for tag in tags]
    assert names == ["train_loss", "loss", "train_loss (2)", "segment (2)", "step (2)", "record (2)", "epoch"]
    assert [columns[tag] for tag in tags] == names


def test_numbers() -> None:
    assert [number(x) for x in (1, 1.5, True, "1", None, 10**400)] == [1.0, 1.5, None, None, None, None]
    assert [whole(x) for x in (3, 3.0, 3.5, math.nan, math.inf, True, 2**60)] == [3, 3] + [None] * 5


# damage of every kind


def frame_events(contents: list[bytes]) -> bytes:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    def checked(data: bytes) -> bytes:
        return data + struct.pack("<I", masked_crc32c(data))

    return b"".join(checked(struct.pack("<Q", len(content))) + checked(content) for content in contents)


def frame_wandb(contents: list[bytes]) -> bytes:
    data = b":W&B\xe1\xbe\x00"
    for content in contents:
        assert len(content) < 32768
        if 32768 - len(data) % 32768 < len(content) + 7:
            data += bytes(32768 - len(data) % 32768)
        data += struct.pack("<IHB", zlib.crc32(content, zlib.crc32(b"\1")), len(content), 1) + content
    return data


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Cut, overwrite, insert or repeat somewhere, up to three times."""
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(len(data), begin + 200)))
        kind = draw(st.sampled_from(("cut", "delete", "overwrite", "digit", "repeat")))
        if kind == "cut":
            data = data[:begin]
        elif kind == "digit":
            data = (
                data[:begin]
                + draw(st.sampled_from([b"9", b"-", b"e9", b"NaN", b"null", b'"', b"{", b"]"]))
                + data[begin + 1 :]
            )
        else:
            new = {"delete": b"", "overwrite": draw(st.binary(max_size=20)), "repeat": data[begin:end] * 2}[
                kind
            ]
            data = data[:begin] + new + data[end:]
    return data


def read_or_refuse(path: Path, name: str) -> Log | None:
    """What the reader makes of a file, though it may no longer look like one of its format."""
    try:
        return FORMATS[name].read(Source(path))
    except LogError:
        return None


def accounted(log: Log) -> None:
    assert len(log.faults) == log.lines["fault"]
    assert log.table["step"].is_monotonic_increasing
    assert not log.table.duplicated(["record", "step"]).any()


@pytest.fixture(scope="session")
def samples(
    own_run: Path, trainer: tuple[Path, list[dict[str, Any]]], events: Path, offline: Path
) -> dict[str, bytes]:
    return {
        "run": (own_run / "metrics.jsonl").read_bytes(),
        "huggingface": (trainer[0] / "checkpoint-12" / "trainer_state.json").read_bytes(),
        "tensorboard": sorted(events.iterdir())[0].read_bytes(),
        "wandb": file_of(offline).read_bytes(),
    }


FRAMES: dict[str, tuple[Callable[[bytes], Any], Callable[[list[bytes]], bytes]]] = {
    "tensorboard": (tensorboard_reader._frames, frame_events),
    "wandb": (wandb_reader._contents, frame_wandb),
}


@pytest.mark.parametrize("name", ["run", "huggingface", "tensorboard", "wandb"])
def test_damage_anywhere(
    name: str, samples: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "log"

    @settings(max_examples=40, deadline=None, database=None)
    @given(damaged(samples[name]))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        log = read_or_refuse(path, name)
        if log is not None:
            accounted(log)
            if name == "run":
                assert log.lines.total() == len(Source(path).lines)

    check()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_damage_with_sound_checksums(
    name: str, samples: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    split, frame = FRAMES[name]
    contents = [content for content in split(samples[name]) if len(content) < 3000]
    path = tmp_path_factory.mktemp("damaged") / "log"

    @settings(max_examples=40, deadline=None, database=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        changed = copy.copy(contents)
        for _ in range(3):
            index = data.draw(st.integers(0, len(contents) - 1))
            changed[index] = data.draw(damaged(contents[index]))
        path.write_bytes(frame(changed))
        log = read_or_refuse(path, name)
        if log is not None:
            accounted(log)
            assert log.lines.total() == len(changed)

    check()


@pytest.mark.parametrize("name", ["run", "huggingface", "tensorboard", "wandb"])
@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\x1f\x8b\x08", b"{}", b"[]", b"\0" * 100, b":W&B\xe1\xbe\x00"]
)
def test_files_that_are_none(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(content)
    with pytest.raises(LogError):
        FORMATS[name].read(Source(path))
    with pytest.raises(LogError, match="tfevents"):
        read(path)


def test_each_is_recognised(samples: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in samples.items():
        (tmp_path / "log").write_bytes(content)
        assert recognised(tmp_path / "log") == name
    with pytest.raises(LogError, match="a log"):
        read(tmp_path)
