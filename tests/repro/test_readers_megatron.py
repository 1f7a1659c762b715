"""Megatron-LM's output, and files of arguments."""

from pathlib import Path

import pytest
from released_samples import GPT_ARGS, MEGATRON, Folder

from repro.logs import read
from repro.logs.log import LogError, Source
from repro.logs.megatron import read_args


def test_records(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(MEGATRON), strict=True)
    assert log.lines == {"record": 4, "other": 11}
    assert log.table["record"].tolist() == ["train", "train", "eval", "train"]
    assert log.table["step"].tolist() == [10, 20, 20, 30]
    assert log.series("train_loss").to_dict() == {20: 10.5, 30: 9.5}  # none while iterations are skipped
    assert log.series("lr").tolist() == [6.25e-6, 1.25e-5, 1.875e-5]
    assert log.series("skipped").tolist() == [10, 1]
    assert log.table.iloc[2][["eval_loss", "eval_ppl"]].tolist() == [9.75, 17154.23]
    assert (log.units["ms_per_step"], log.units["global_batch_size"]) == ("ms", "as logged")


def test_what_else_it_says(tmp_path: Path) -> None:
    ranks = MEGATRON.replace(
        "(0, 0): 354871296\n", "(0, 0): 300\n > number of parameters on model rank (1, 0): 50\n"
    )
    log = read(Folder(tmp_path).write(ranks))
    assert log.config == {"adam_beta1": 0.9, "lr": 0.0025, "train_data_path": None, "parameters": 350}
    assert log.events == [{"line": 15, "what": "checkpoint", "step": 20}]


@pytest.mark.parametrize(
    "tag", ["[default7]:", "7: ", "[rank7]: ", "[2023-01-01 10:00:00] ", "[2023-01-01 10:00] [7] "]
)
def test_tags_of_launchers(tmp_path: Path, tag: str) -> None:
    plain = read(Folder(tmp_path).write(MEGATRON))
    tagged = read(Folder(tmp_path).write("".join(tag + line for line in MEGATRON.splitlines(keepends=True))))
    assert tagged.table.equals(plain.table)
    assert (tagged.config, tagged.events) == (plain.config, plain.events)


def test_restart(tmp_path: Path) -> None:
    loaded = "  successfully loaded checkpoint from checkpoints at iteration 20\n"
    again = " iteration       30/     100 | lm loss: 9.25E+00 | learning rate: 1.875E-05 |\n"
    log = read(Folder(tmp_path).write(MEGATRON + loaded + again))
    assert log.series("train_loss").to_dict() == {20: 10.5, 30: 9.25}
    assert (log.resumes, log.repeated) == (1, 1)


def test_evaluations_at_the_end(tmp_path: Path) -> None:
    end = """\
[after training is done] datetime: 2023-01-01 10:00:00
 validation loss at the end of training for val data | lm loss value: 9E+00 | lm loss PPL: 8.1E+03 |
 validation loss at the end of training for test data | lm loss value: 9.125E+00 | lm loss PPL: 9.1E+03 |
"""
    log = read(Folder(tmp_path).write(MEGATRON + end))
    assert log.series("eval_loss").to_dict() == {20: 9.75, 30: 9}
    assert log.series("test_loss").to_dict() == {30: 9.125}
    assert log.events[-1] == {"line": 16, "what": "done", "step": 30}
    twice = end.splitlines(keepends=True)[1] * 2
    log = read(Folder(tmp_path).write(MEGATRON + twice))
    assert log.series("eval_loss").to_dict() == {20: 9.75, 30: 9}
    assert "evaluated again" in log.oddities[0]


FINAL = """\
[after training is done] datetime: 2025-01-01 10:00:21
 validation loss at iteration 20 on validation set | lm loss value: 9E+00 | lm loss PPL: 8.1E+03 |
 validation loss at iteration 20 on test set | lm loss value: 9.125E+00 | lm loss PPL: 9.1E+03 |
"""


def test_evaluations_after_training_in_their_newer_wording(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(MEGATRON[: MEGATRON.rindex(" iteration")] + FINAL), strict=True)
    assert (log.resumes, log.repeated) == (0, 0)
    assert log.series("eval_loss").to_dict() == {20: 9.75}
    assert log.series("final_eval_loss").to_dict() == {20: 9}
    assert log.series("test_loss").to_dict() == {20: 9.125}
    assert log.units["final_eval_loss"] == "nats"
    assert log.units["final_eval_ppl"] == "exp(loss)"


def test_several_validation_sets(tmp_path: Path) -> None:
    first = FINAL.replace("validation loss", "validation-0 loss")
    second = FINAL.replace("validation loss", "validation-code loss").replace("9E+00", "8E+00")
    during = " validation-0 loss at iteration 20 | lm loss value: 7E+00 |\n"
    log = read(Folder(tmp_path).write(MEGATRON + during + first + second), strict=True)
    assert log.series("eval_0_loss").to_dict() == {20: 7}
    assert log.series("final_eval_0_loss").to_dict() == {20: 9}
    assert log.series("eval_code_loss").to_dict() == {20: 8}  # first evaluated after training
    assert log.series("test_code_loss").to_dict() == {20: 9.125}
    assert log.units["eval_code_loss"] == "nats"


def test_evaluation_only(tmp_path: Path) -> None:
    loaded = "  successfully loaded checkpoint from /ckpt at iteration 20\n"
    end = FINAL.replace("iteration 20 on validation set", "the end of training for val data")
    end = end.replace("iteration 20 on test set", "the end of training for test data")
    log = read(Folder(tmp_path).write(loaded + end), strict=True)
    assert log.series("eval_loss").to_dict() == {20: 9}
    assert log.series("test_loss").to_dict() == {20: 9.125}
    assert (log.resumes, log.oddities) == (0, [])
    with pytest.raises(LogError, match="nothing before it says after which iteration"):
        read(Folder(tmp_path).write(end))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            " iteration       40/     100 | lm loss: 9.5E+00 | lear",
            "not a record ('lear' is no `name: value`)",
        ),
        (" iteration       40/     100 |", "not a record (no values)"),
        (" iteration       40/     100 | lm loss: x |", "not a record ('x' is no number)"),
        (
            " iteration       40/     100 | lm loss: 1 | lm loss: 2 |",
            "'lm loss' has the column of something else",
        ),
        (" iteration       40/     100 | lm loss: 1 | step: 2 |", "'step' has the column of something else"),
        (" iteration       40/ | lm loss: 1 |", "not a whole record"),
        (" validation loss at iteration 40 | lm loss value: |", "not a record"),
    ],
)
def test_lines_that_are_none(tmp_path: Path, line: str, why: str) -> None:
    log = read(Folder(tmp_path).write(f"{MEGATRON}{line}\n"))
    assert log.lines == {"record": 4, "other": 11, "fault": 1}
    assert log.faults[0].startswith(f"{tmp_path}/log:16: ")
    assert why in log.faults[0]


def test_arguments(tmp_path: Path) -> None:
    text = GPT_ARGS + "# a comment\n--split 949,50,1 \\\n--betas 0.9 .999\n--adlr-autoresume\n--seed -1\n"
    assert read_args(Source(Folder(tmp_path).write(text))) == {
        "num_layers": 24,
        "lr": 0.0025,
        "train_iters": 150000,
        "weight_decay": 0.05,
        "optimizer": "adan",
        "fp16": True,
        "split": (949, 50, 1),
        "betas": [0.9, 0.999],
        "adlr_autoresume": True,
        "seed": -1,
    }


@pytest.mark.parametrize("text", ["lr 1\n", "--lr 1\nx --fp16\n", "--lr 'a\n", "# nothing\n"])
def test_arguments_that_are_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(LogError, match=r"gpt_args(:\d)?: "):
        read_args(Source(Folder(tmp_path).write(text, "gpt_args")))
