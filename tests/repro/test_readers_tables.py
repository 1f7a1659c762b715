"""Logs of other programs: tables and JSON lines that no format claims, mmengine and nanoGPT."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet  # type: ignore[import-untyped]
from released_samples import Folder
from test_reader_fuzz import attempt, folder, mutilated

from repro.logs import epochs_from, read
from repro.logs.log import UNKNOWN, LogError, Source
from repro.logs.present import export

LIGHTNING = """\
epoch,lr-AdamW,step,train_loss,val_loss
,0.1,9,,
0,,9,1.0,
0,,9,,1.1
1,,19,0.9,
1,,19,,1.0
"""
KERAS = "epoch,accuracy,loss,val_accuracy,val_loss\n0,0.5,1.0,0.4,1.1\n1,0.6,0.9,0.5,1.0\n"
FASTAI = "epoch,train_loss,valid_loss,accuracy,time\n0,1.0,1.1,0.41,00:02\n1,0.9,1.0,0.52,01:01:01\n"
SEMICOLON = "epoch;train_loss;val_loss\n1;1.0;1.1\n2;0.9;1.0\n"
BLANKS = "# step   loss    lr\n   100   2.5   0.1\n   200   2.25  0.05\n"
DINO = (
    '{"train_loss": 1.0, "train_lr": 0.1, "train_wd": 0.1, "epoch": 0}\n'
    '{"train_loss": 0.9, "train_lr": 0.1, "train_wd": 0.2, "epoch": 1}\n'
)
DETR = (
    '{"train_lr": 0.1, "train_loss": 2.0, "test_loss": 1.9, "test_coco_eval_bbox": [0.1, 0.2], "epoch": 0}\n'
    '{"train_lr": 0.1, "train_loss": 1.0, "test_loss": 1.0, "test_coco_eval_bbox": [0.2, 0.3], "epoch": 1}\n'
)
STAGES = (
    '{"mode": "train", "iter": 10, "loss": 2.0, "time": {"data": 0.5}}\n'
    '{"mode": "val", "iter": 10, "loss": 3.0}\n'
    '{"mode": "train", "iter": 20, "loss": 1.0, "time": {"data": 0.25}}\n'
)


@pytest.mark.parametrize(
    ("content", "format", "columns"),
    [
        (
            LIGHTNING,
            "csv",
            {"train_loss": {9: 1, 19: 0.9}, "eval_loss": {9: 1.1, 19: 1}, "lr-AdamW": {9: 0.1}},
        ),
        (
            KERAS,
            "csv",
            {"train_loss": {0: 1, 1: 0.9}, "accuracy": {0: 0.5, 1: 0.6}, "eval_accuracy": {0: 0.4, 1: 0.5}},
        ),
        (FASTAI, "csv", {"eval_loss": {0: 1.1, 1: 1}, "time": {0: "00:02", 1: "01:01:01"}}),
        (SEMICOLON, "csv", {"train_loss": {1: 1, 2: 0.9}, "eval_loss": {1: 1.1, 2: 1}}),
        (SEMICOLON.replace(";", "\t"), "csv", {"eval_loss": {1: 1.1, 2: 1}}),
        (SEMICOLON.replace(".", ","), "csv", {"train_loss": {1: 1, 2: 0.9}, "eval_loss": {1: 1.1, 2: 1}}),
        (",epoch,loss,loss\n0,1,2,3\n", "csv", {"column (1)": {1: 0}, "loss (4)": {1: 3}}),
        (BLANKS, "csv", {"train_loss": {100: 2.5, 200: 2.25}, "lr": {100: 0.1, 200: 0.05}}),
        ("epoch,train_loss\n0,3\n", "csv", {"train_loss": {0: 3}}),
        ("Epoch,line,line (2)\n0,3,4\n", "csv", {"line (2)": {0: 3}, "line (2) (2)": {0: 4}}),
        (DINO, "jsonl", {"train_loss": {0: 1, 1: 0.9}, "lr": {0: 0.1, 1: 0.1}, "train_wd": {0: 0.1, 1: 0.2}}),
        (DETR, "jsonl", {"train_loss": {0: 2, 1: 1}, "test_loss": {0: 1.9, 1: 1}}),
        (STAGES, "jsonl", {"train_loss": {10: 2, 20: 1}, "eval_loss": {10: 3}}),
        ('{"loss": 2, "note": null, "step": 5}\n', "jsonl", {"train_loss": {5: 2}}),
    ],
)  # fmt: skip
def test_every_column_is_kept(tmp_path: Path, content: str, format: str, columns: dict[str, object]) -> None:
    log = read(Folder(tmp_path).write(content), strict=True)
    assert log.format == format
    assert log.lines.total() == content.count("\n")
    assert {name: log.series(name).to_dict() for name in columns} == columns
    assert set(log.units.values()) == {UNKNOWN}


def test_what_is_no_number_costs_itself_alone(tmp_path: Path) -> None:
    path = Folder(tmp_path).write(DETR)
    assert read(path).oddities == [
        f"{path}: 'test_coco_eval_bbox' is no number in 2 lines, where it is left out"
    ]
    log = read(Folder(tmp_path).write(KERAS.replace("0.9", "n/a")), strict=True)
    assert log.series("train_loss").to_dict() == {0: 1}
    assert log.series("eval_loss").to_dict() == {0: 1.1, 1: 1}
    assert log.oddities[0].endswith("'loss' is no number in 1 lines, where it is left out")


def test_text_can_be_exported(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(FASTAI))
    export(log, tmp_path / "out.parquet")
    assert parquet.read_table(tmp_path / "out.parquet")["time"].to_pylist() == ["00:02", "01:01:01"]


@pytest.mark.parametrize(("first", "number"), [(0, 0), (1, 1), (3, 1)])
def test_the_first_epoch_is_what_the_table_says(tmp_path: Path, first: int, number: int) -> None:
    rows = "".join(f"{epoch};1.0\n" for epoch in range(first, first + 3))
    assert epochs_from(read(Folder(tmp_path).write("epoch;loss\n" + rows))) == number


def test_a_resumed_table(tmp_path: Path) -> None:
    path = Folder(tmp_path).write(KERAS + KERAS.replace("0,0.5", "1,0.5").replace("1,0.6", "2,0.6"))
    log = read(path, strict=True)
    assert (log.lines, log.resumes, log.repeated) == ({"record": 4, "other": 2}, 1, 1)
    assert log.series("train_loss").to_dict() == {0: 1, 1: 1, 2: 0.9}
    assert log.oddities[0] == f"{path}:4: the run was resumed here (a second header)"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("2,0.5", "2 values under 5 columns"),
        (",0.5,1,1,1", "no epoch"),
        ("x,0.5,1,1,1", "'x' is no number"),
        ("-1,0.5,1,1,1", "'-1' is no position"),
        ('2,"' + "1" * 200_000 + '",1,1,1', "field limit"),
        ("2,0.5,1,1,\xff", "bytes that are not text"),
        ("2,0.5,1,1,1", "cut off"),
    ],
)
def test_rows_that_are_none(tmp_path: Path, line: str, why: str) -> None:
    end = "" if why == "cut off" else "\n"
    log = read(Folder(tmp_path).write(KERAS.encode() + line.encode("latin-1") + end.encode()))
    assert (log.lines["record"], log.lines["fault"]) == (2, 1)
    assert why in log.faults[0]


def test_json_lines_that_are_none(tmp_path: Path) -> None:
    lines = ["[1]", '{"epoch": 2', '{"train_loss": 1}', '{"epoch": true, "train_loss": 1}', "[" * 100_000]
    log = read(Folder(tmp_path).write(DINO + "\n".join(lines)))
    assert log.lines == {"record": 2, "fault": 5}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            "epoch,batch,loss\n0,0,3\n0,1,2\n0,2,2\n1,0,1\n1,1,1\n",
            "log: 3 lines have the epoch .* add a column",
        ),
        ("epoch,step,loss\n0,0,3\n0,1,2\n1,0,1\n", "log:4: step begins again in epoch 1: add a column"),
        ("time,loss\n1,2\n", "tables need a column `epoch` or `step`.*begins with 'time,loss'"),
        ('{"loss": 1}\n', "tables need a column `epoch` or `step`"),
        ("epoch,loss\nnone,1\n", "not a log that this reads"),
        ("the first step of an epoch\nis not a number here yet\n", "not a log that this reads"),
    ],
)
def test_tables_without_a_position(tmp_path: Path, content: str, why: str) -> None:
    with pytest.raises(LogError, match=why):
        read(Folder(tmp_path).write(content))


# mmengine

MMENGINE = """\
{"lr": 0.01, "data_time": 0.001, "loss": 0.9, "time": 0.1, "epoch": 1, "iter": 4, "step": 4}
{"lr": 0.01, "data_time": 0.001, "loss": 0.8, "time": 0.1, "epoch": 1, "iter": 8, "step": 8}
{"accuracy/top1": 45.0, "data_time": 0.001, "time": 0.1, "step": 1}
{"lr": 0.01, "data_time": 0.001, "loss": 0.7, "time": 0.1, "epoch": 2, "iter": 12, "step": 12}
{"accuracy/top1": 55.0, "coco/classwise": [1, 2], "step": 2}
"""


@pytest.mark.parametrize(
    ("content", "steps", "epochs"),
    [
        (MMENGINE, [8, 12], [1, 2]),
        (MMENGINE.replace('"loss', '"train/loss').replace('"data', '"train/data'), [8, 12], [1, 2]),
        (
            re.sub('"epoch": ., ', "", MMENGINE).replace(' "step": 1}', ' "step": 10}'),
            [2, 10],
            None,
        ),  # by iterations
    ],
)  # fmt: skip
def test_mmengine(tmp_path: Path, content: str, steps: list[int], epochs: list[int] | None) -> None:
    log = read(Folder(tmp_path).write(content, "scalars.json"), strict=True)
    assert (log.format, log.lines) == ("mmengine", {"record": 5})
    assert log.series("train_loss").to_dict() == {4: 0.9, 8: 0.8, 12: 0.7}
    evaluations = log.of("eval")
    assert evaluations["step"].to_list() == steps
    assert evaluations["eval_accuracy/top1"].to_list() == ([45, 55] if epochs else [55, 45])
    assert ("epoch" in evaluations) == (epochs is not None)
    assert epochs is None or evaluations["epoch"].to_list() == epochs
    assert "no number, and left out: coco/classwise" in log.oddities[0]


def test_mmengine_lines_that_are_none(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(MMENGINE + '{"loss": 1}\n{"iter": 5, "step": -1}\n{"lr"'))
    assert log.lines == {"record": 5, "fault": 3}


# nanoGPT

NANOGPT = """\
Overriding: device = cpu
tokens per iteration will be: 16,384
number of parameters: 10.65M
step 0: train loss 4.28, val loss 4.29
iter 0: loss 4.2874, time 34.5ms, mfu -100.00%
iter 10: loss 3.1, time 33ms, mfu 1.25%
step 20: train loss 2.5, val loss 2.6
saving checkpoint to out
iter 20: loss 2.75, time 33ms, mfu 1.25%, grad_norm 0.5
"""


def test_nanogpt(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(NANOGPT), strict=True)
    assert (log.format, log.lines, log.config) == (
        "nanogpt",
        {"record": 5, "other": 4},
        {"parameters": 10_650_000},
    )
    assert log.series("train_loss").to_dict() == {0: 4.2874, 10: 3.1, 20: 2.75}
    assert log.series("eval_loss").to_dict() == {0: 4.29, 20: 2.6}
    assert log.series("eval_train_loss").to_dict() == {0: 4.28, 20: 2.5}
    assert log.series("mfu").to_dict() == {10: 1.25, 20: 1.25}  # -100 % is not measured
    assert log.series("grad_norm").to_dict() == {20: 0.5}
    resumed = (
        NANOGPT + "Resuming training from out\nstep 20: train loss 2.5, val loss 2.6\niter 20: loss 2, tim\n"
    )
    log = read(Folder(tmp_path).write(resumed))
    assert (log.resumes, log.repeated, log.lines["fault"]) == (1, 1, 1)
    assert "'tim' is no name and value" in log.faults[0]


@pytest.mark.parametrize("content", [LIGHTNING, DETR + STAGES, MMENGINE, NANOGPT])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_mutilated_logs(content: str, data: st.DataObject) -> None:
    """Whatever happened to a log, it is read or refused in one line, and every line is accounted for."""
    path = folder().write(data.draw(mutilated(content)))
    log = attempt(read, path)
    if log is not None:
        assert log.lines.total() == len(Source(path).lines)
        assert len(log.table) + log.repeated <= log.lines["record"]
        assert all("\n" not in remark for remark in (*log.faults, *log.oddities))


# which format


def test_a_format_is_claimed_by_what_only_it_has(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for content, format in (
        ("epoch,train_loss,eval_loss\n0,1.5,1.25\n", "timm"),
        ("epoch,train_loss,eval_loss,val_loss\n0,1.5,1.25,1.5\n", "csv"),
        ('{"train_lr": 1, "train_loss": 1, "epoch": 0}', "mae"),
        ('{"train_loss": 1, "train_lr": 1, "epoch": 0}', "jsonl"),
        ('{"train_lr": 1, "train_loss": 1, "test_loss": 1, "test_acc1": 1, "epoch": 0}', "mae"),
        ('{"train_lr": 1, "train_loss": 1, "test_loss": 1, "epoch": 0}', "jsonl"),
        ('{"step": 1, "lr": 1, "epoch": 1}', "run"),
        ('{"lr": 1, "epoch": 1, "step": 1, "loss": 1}', "jsonl"),
    ):
        assert read(folder.write(content)).format == format
