"""fairseq's logs and its configurations."""

# ruff: noqa: E501  the lines of logs are long

from pathlib import Path

import pytest
from released_samples import FAIRSEQ, FAIRSEQ_RESUMED, TIMM_ARGS, Folder

from repro.logs import read
from repro.logs.fairseq import read_config
from repro.logs.log import LogError, Source

TIME = "[2022-08-01 01:31:50,456]"


def test_records(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(FAIRSEQ), strict=True)
    assert log.table[["record", "step", "epoch", "line"]].to_numpy().tolist() == [
        ["train", 200, 1, 13],
        ["train", 400, 1, 15],
        ["eval", 500, 1, 16],
        ["epoch", 501, 1, 18],
    ]
    train = log.of("train").iloc[1]
    assert (train["train_loss"], train["train_ppl"], train["lr"], train["grad_norm"]) == (
        10.5,
        1448.15,
        4e-5,
        1.5,
    )
    assert (train["clip"], train["loss_scale"], train["words_per_second"]) == (2.5, 32, 360757)
    epoch = log.of("epoch").iloc[0]
    assert (epoch["train_seconds"], epoch["seconds"], epoch["train_loss"]) == (170, 201, 11.25)
    assert log.series("eval_loss").to_dict() == {500: 9.5}
    assert log.units["train_loss"] == log.units["eval_loss"] == "bits"


def test_what_else_it_says(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(FAIRSEQ))
    assert log.config["optimization"] == {"max_update": 1000, "clip_norm": 5.0, "lr": [0.001]}
    assert log.config["task"]["sample_break_mode"] == "complete"
    assert log.config["task"]["_name"] == "masked_lm"
    said = {
        key: log.config[key]
        for key in ("parameters", "devices", "dictionary", "iterations_per_epoch", "examples")
    }
    assert said == {
        "parameters": 209_714_265,
        "devices": 8,
        "dictionary": 50_264,
        "iterations_per_epoch": 502,
        "examples": {"valid": 1_066_112},
    }
    assert log.events == [
        {"line": 14, "what": "overflow", "step": 200, "loss_scale": 32.0},
        {"line": 17, "what": "checkpoint", "step": 500, "path": "bert/adan2/checkpoint_1_500.pt", "epoch": 1},
        {"line": 19, "what": "done", "step": 501, "seconds": 202.5},
    ]


def test_parts_of_one_run(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    log = read([folder.write(FAIRSEQ, "a"), folder.write(FAIRSEQ_RESUMED, "b")])
    assert log.of("train")[["step", "train_loss", "file", "segment"]].to_numpy().tolist() == [
        [200, 14.125, 0, 0],
        [400, 10.501, 1, 1],
        [600, 9, 1, 1],
    ]
    assert (log.resumes, log.repeated) == (1, 1)
    assert [event["file"] for event in log.events if event["what"] == "loaded"] == [1]
    assert log.units["train_loss"] == "bits"  # as the first part says
    assert log.config["parameters"] == 209_714_265


def test_parts_in_one_file(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(FAIRSEQ + FAIRSEQ.splitlines()[0] + "\n" + FAIRSEQ_RESUMED))
    assert (log.resumes, log.repeated) == (1, 1)
    assert f"{tmp_path}/log:20: the run was resumed here (a second start)" in log.oddities


def test_weights_to_begin_with_are_no_resume(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(FAIRSEQ_RESUMED.replace("@ 300", "@ 0")))
    assert log.resumes == 0
    assert log.events[0]["what"] == "loaded"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[2022-08-01 01:3", "neither"),
        ("epoch 1 | loss 3", "neither"),
        (TIME + '[train_inner][INFO] - {"epoch": 1, "upd', "not a record"),
        (TIME + '[train_inner][INFO] - {"epoch": 1, "loss": "3"}', "without num_updates"),
        (TIME + '[valid][INFO] - {"epoch": 1, "num_updates": "3"}', None),
        (TIME + '[valid][INFO] - {"valid_num_updates": "3"}', "without valid_epoch"),
        (TIME + '[train_inner][INFO] - {"epoch": 1, "num_updates": "3.5"}', "'3.5' is no position"),
        (
            TIME + '[train_inner][INFO] - {"epoch": 1, "num_updates": "600", "loss": "abc"}',
            "'abc' is no number",
        ),
        (TIME + '[valid1][INFO] - {"epoch": 1, "valid1_loss": "3"}', "a record of valid1"),
    ],
)
def test_lines_that_are_none(tmp_path: Path, line: str, why: str | None) -> None:
    good = FAIRSEQ.splitlines(keepends=True)[:13]
    log = read(Folder(tmp_path).write("".join([*good, line + "\n"])))
    assert log.lines == {"record": 1 + (why is None), "other": 12} | ({"fault": 1} if why else {})
    if why:
        assert log.faults[0].startswith(f"{tmp_path}/log:14: ")
        assert why in log.faults[0]


SIMPLE = """\
[2022-01-01 10:00:00,123][train_inner][INFO] - epoch 001:    100 / 200 loss=10.5, ppl=1448.15, num_updates=100, lr=1e-05
[2022-01-01 10:00:01,123][valid][INFO] - epoch 001 | valid on 'valid' subset | loss 9.5 | ppl 724 | num_updates 200
[2022-01-01 10:00:01,123][code][INFO] - epoch 001 | valid on 'code' subset | loss 8.5 | ppl 362 | num_updates 200
[2022-01-01 10:00:02,123][train][INFO] - epoch 001 | loss 10 | ppl 1024 | num_updates 200 | lr 2e-05
"""
CLI = """\
2021-01-01 10:00:00 | INFO | fairseq_cli.train | Namespace(no_progress_bar=False, log_interval=100, lr=[0.1])
2021-01-01 10:00:01 | INFO | train_inner | {"epoch": 1, "update": 0.5, "loss": "10.5", "ppl": "1448.15", "num_updates": "100"}
2021-01-01 10:00:02 | INFO | valid | {"epoch": 1, "valid_loss": "9.5", "valid_ppl": "724", "valid_num_updates": "200"}
2021-01-01 10:00:02 | INFO | code | {"epoch": 1, "code_loss": "8.5", "code_ppl": "362", "code_num_updates": "200"}
2021-01-01 10:00:03 | INFO | train | {"epoch": 1, "train_loss": "10", "train_ppl": "1024", "train_num_updates": "200"}
"""


@pytest.mark.parametrize("content", [SIMPLE, CLI])
def test_other_layouts_of_a_line(tmp_path: Path, content: str) -> None:
    log = read(Folder(tmp_path).write(content), strict=True)
    assert (log.format, log.lines["record"], log.repeated) == ("fairseq", 4, 0)
    assert log.of("train")[["step", "epoch", "train_loss"]].to_numpy().tolist() == [[100, 1, 10.5]]
    assert log.of("epoch")[["step", "epoch", "train_loss"]].to_numpy().tolist() == [[200, 1, 10]]
    assert log.of("eval")[["step", "eval_loss", "eval_code_loss"]].to_numpy().tolist() == [[200, 9.5, 8.5]]
    assert {log.units[name] for name in ("train_loss", "eval_loss", "eval_code_loss")} == {"bits"}
    assert log.config == (
        {"no_progress_bar": False, "log_interval": 100, "lr": [0.1]} if content is CLI else {}
    )


def test_lines_of_other_programs_with_this_layout(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="not a log that this reads"):
        read(Folder(tmp_path).write(TIME + "[__main__][INFO] - epoch 1\n"))


def test_a_loss_without_a_perplexity_is_of_an_unknown_unit(tmp_path: Path) -> None:
    assert read(Folder(tmp_path).write(FAIRSEQ_RESUMED)).units["train_loss"] == "as logged"
    damaged = SIMPLE.replace("loss=10.5, ppl", "loss=10.5 ppl=").replace(", ppl=1448", " ppl 1448")
    assert read(Folder(tmp_path).write(damaged)).lines == {"record": 3, "fault": 1}


def test_messages_may_go_on(tmp_path: Path) -> None:
    error = TIME + "[fairseq_cli.train][ERROR] - Traceback\n  File train.py\nRuntimeError\n"
    assert read(Folder(tmp_path).write(FAIRSEQ + error), strict=True).lines["other"] == 18


def test_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(FAIRSEQ.replace("'/data/'}}", "'/da")))
    assert "optimization" not in log.config
    assert log.oddities == [f"{tmp_path}/log:1: a configuration that cannot be read"]


CONFIG = """\
# @package _group_
hydra:
  run:
    dir: outputs/${now:%Y-%m-%d}
common:
  fp16: true
task:
  data: ???
optimization:
  lr: [4e-05]
distributed_training:
  fp16: ${common.fp16}
optimizer:
  adan_betas: (0.98,0.99,0.99)
"""


def test_configuration_files(tmp_path: Path) -> None:
    assert read_config(Source(Folder(tmp_path).write(CONFIG))) == {
        "common": {"fp16": True},
        "task": {"data": "???"},
        "optimization": {"lr": [4e-5]},
        "distributed_training": {"fp16": True},
        "optimizer": {"adan_betas": "(0.98,0.99,0.99)"},
    }


@pytest.mark.parametrize(
    "text", ["a: [", "- 1\n", "abc\n", TIMM_ARGS, "task: ${missing}\n", "task: ${a\n", "\x07"]
)
def test_configurations_that_are_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(LogError, match="log: not a configuration"):
        read_config(Source(Folder(tmp_path).write(text)))
