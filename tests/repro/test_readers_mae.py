"""The JSON lines of MAE's scripts."""

from pathlib import Path

import pytest
from released_samples import MAE, MAE_FINETUNING, Folder

from repro.logs import mae, read


def test_pretraining(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(MAE), strict=True)
    assert log.lines == {"record": 5}
    assert (log.repeated, log.resumes) == (1, 1)
    assert log.series("train_loss").to_dict() == {0: 1.0373671979237444, 1: 0.82, 2: 0.7498, 3: 0.72}
    assert log.series("lr").tolist() == [1.25e-5, 3.75e-5, 6.25e-5, 8.75e-5]
    assert log.units == {"lr": "1", "train_loss": mae.PRETRAINING}
    assert log.oddities == [
        f"{tmp_path}/log:4: the run was resumed here (epoch goes back to 2)",
        "1 records repeat their epoch (2): the last one is kept",
    ]


def test_finetuning(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(MAE_FINETUNING), strict=True)
    assert log.config == {"parameters": 304_326_632}
    assert log.units["train_loss"] == mae.FINETUNING
    row = log.table.iloc[0]
    assert (row["eval_loss"], row["eval_top1"], row["eval_top5"]) == (1.77, 61.33637235611582, 84.7)


def test_keys_of_scripts_that_come_from_it(tmp_path: Path) -> None:
    line = (
        '{"train_lr": 1, "train_loss": 2, "train_grad_norm": 3, "test_loss": 5, "test_acc1": 4, '
        '"latest_x": 6, "epoch": 0}'
    )
    row = read(Folder(tmp_path).write(line), strict=True).table.iloc[0]  # JSON is whole without a line end
    assert (row["grad_norm"], row["eval_loss"], row["eval_top1"], row["latest_x"]) == (3, 5, 4, 6)


def test_losses_of_other_scripts_are_of_unknown_units(tmp_path: Path) -> None:
    line = '{"train_lr": 1, "train_loss": 2, "test_loss": 3, "epoch": 0}'
    units = Folder(tmp_path).parse("mae", line).units
    assert (units["train_loss"], units["eval_loss"]) == ("as logged", "as logged")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"train_lr": 1e-05, "train_loss": 0.5, "ep', "not JSON"),
        ("[1, 2]", "not a JSON object with epoch, train_lr, train_loss"),
        ('{"train_lr": 1e-05, "epoch": 7}', "not a JSON object with epoch, train_lr, train_loss"),
        ('{"train_lr": 1e-05, "train_loss": 0.5, "epoch": 1.5}', "1.5 is no position"),
        ('{"train_lr": 1e-05, "train_loss": 0.5, "epoch": true}', "True is no number"),
        ('{"train_lr": null, "train_loss": 0.5, "epoch": 7}', "None is no number"),
        ('{"train_lr": 1, "train_loss": 0.5, "epoch": 7, "segment": 1}', "key 'segment'"),
        ('{"train_lr": 1, "train_loss": 0.5, "epoch": 7, "lr": 1}', "key 'lr'"),
        ("[" * 100_000, "not JSON"),
        ('{"train_lr": 1, "train_loss": 0.5, "epoch": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_lines_that_are_none(tmp_path: Path, line: str, why: str) -> None:
    log = read(Folder(tmp_path).write(f"{MAE}{line}\n"))
    assert log.lines == {"record": 5, "fault": 1}
    assert log.faults[0].startswith(f"{tmp_path}/log:6: ")
    assert why in log.faults[0]


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    lines = '{"train_lr": 1, "train_loss": NaN, "epoch": 4}\n{"train_lr": 1, "train_loss": NaN, "epoch": 5}\n'
    log = read(Folder(tmp_path).write(MAE + lines))
    assert len(log.table) == 6
    assert f"{tmp_path}/log:6: train_loss is nan (and in 1 more records)" in log.oddities
