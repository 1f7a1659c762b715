"""timm's summary.csv and args.yaml."""

from pathlib import Path

import pytest
from released_samples import TIMM, TIMM_ARGS, Folder

from repro.logs import read, timm
from repro.logs.log import Log, LogError, Source


def read_with(folder: Path, args: str, summary: str = TIMM) -> Log:
    Folder(folder).write(args, "args.yaml")
    return read(Folder(folder).write(summary, "summary.csv"))


def test_records(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(TIMM), strict=True)
    assert log.lines == {"record": 4, "other": 2}
    assert log.table["epoch"].tolist() == [0, 1, 2, 3]
    assert log.table["segment"].tolist() == [0, 0, 1, 1]
    assert log.table["line"].tolist() == [2, 3, 5, 6]
    assert log.series("eval_top1").to_dict() == {0: 0.35, 1: 1.5, 2: 3.25, 3: 61.874}
    assert log.oddities == [f"{tmp_path}/log:4: the run was resumed here (a second header)"]
    assert (log.units["eval_loss"], log.units["eval_top1"]) == ("nats", "%")


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("epoch,train_loss,eval_loss,eval_top1,eval_top5,lr", "3,2.5,1.5,50,75,1e-05", {"lr": 1e-5}),
        (
            "epoch,train_loss,eval_loss,eval_prec1,eval_prec5",
            "3,2.5,1.5,50,75",
            {"eval_top1": 50, "eval_top5": 75},
        ),
        ("epoch,train_loss,eval_loss,eval_map", "3,2.5,1.5,0.25", {"eval_map": 0.25}),
        ("epoch,train_loss,eval_loss", "3.0,2.5,1.5", {"train_loss": 2.5}),
    ],
)
def test_headers_of_other_versions(tmp_path: Path, header: str, row: str, expected: dict[str, float]) -> None:
    log = read(Folder(tmp_path).write(f"{header}\n{row}\n"), strict=True)
    assert log.table.iloc[0]["epoch"] == 3
    assert {column: log.table.iloc[0][column] for column in expected} == expected
    assert set(log.units) == set(log.table) - {"record", "epoch", "segment", "file", "line"}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("1,2.5", "2 values under 3 columns"),
        ("1.5,2.5,3", "'1.5' is no position"),
        ("nan,2.5,3", "'nan' is no position"),
        ("-1,2.5,3", "'-1' is no position"),
        ("1e300,2.5,3", "'1e300' is no position"),
        (",2.5,3", "no epoch"),
        ("1,,3", "no train_loss"),
        ("1,x,3", "'x' is no number"),
        ("1,1_0,3", "'1_0' is no number"),
        ('1,"' + "2" * 200_000 + '",3', "field limit"),
    ],
)
def test_rows_that_are_none(tmp_path: Path, row: str, why: str) -> None:
    log = read(Folder(tmp_path).write(f"epoch,train_loss,eval_loss\n0,3,4\n{row}\n2,2.5,\n"))
    assert log.lines == {"record": 2, "other": 1, "fault": 1}
    assert log.faults[0].startswith(f"{tmp_path}/log:3: ")
    assert why in log.faults[0]


def test_header_with_a_name_twice(tmp_path: Path) -> None:
    log = read(
        Folder(tmp_path).write(
            "epoch,train_loss,eval_loss\n0,3,4\nepoch,train_loss,lr,lr\n1,2,3\nepoch,train_loss,line\n"
        )
    )
    assert log.table["epoch"].tolist() == [0, 1]
    assert [fault.rsplit(": ", 1)[1] for fault in log.faults] == ["'lr'", "'line'"]


def test_rows_before_any_header(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"log:1: no header with epoch, train_loss before it"):
        Folder(tmp_path).parse("timm", "0,1.5\n")


def test_arguments_beside_it(tmp_path: Path) -> None:
    log = read_with(tmp_path, TIMM_ARGS)
    assert log.units["train_loss"] == timm.BCE
    assert log.config["opt_betas"] == [0.98, 0.92, 0.99]
    assert log.config["no_prox"] is False
    assert len(log.oddities) == 1  # the resume: 3 + 1 epochs are as they should be


@pytest.mark.parametrize(
    ("old", "new", "unit", "oddity"),
    [
        ("bce_loss: true", "bce_loss: false", timm.CE, None),
        ("bce_loss: true\n", "mixup: 0\n", timm.CE, None),
        ("bce_loss: true", "bce_loss: true\nbce_sum: true", timm.BCE_SUM, None),
        ("bce_loss: true", "bce_loss: true\nbce_pos_weight: 2.0", "the training loss's own", None),
        ("bce_loss: true", "jsd_loss: true", "the training loss's own", None),
        ("smoothing: 0.1", "smoothing: 0", "nats", None),  # timm's script then takes no BCE
        ("model_ema: false", "model_ema: true", timm.BCE, "averaged (EMA) model"),
        ("model_ema: false", "model_ema: true\nmodel_ema_force_cpu: true", timm.BCE, None),
        ("epochs: 3", "epochs: 1\nwarmup_epochs: 2\nwarmup_prefix: true", timm.BCE, None),
        ("epochs: 3", "epochs: 3\nwarmup_epochs: 2\nwarmup_prefix: true", timm.BCE, "3 + 2 of warm-up + 1"),
        ("epochs: 3", "epochs: 8\nval_interval: 2", timm.BCE, None),
        ("epochs: 3", "epochs: 4\nsched: step", timm.BCE, None),
        ("epochs: 3", "epochs: 2\nlr_cycle_limit: 2", timm.BCE, None),
        ("epochs: 3", "epochs: 5", timm.BCE, "4 epochs, where the arguments have 5 + 1"),
        ("epochs: 3", "epochs: many", timm.BCE, None),
        ("model: ", "type: ", "the training loss's own", "args.yaml: not the arguments of a timm run"),
    ],
)
def test_what_arguments_change(tmp_path: Path, old: str, new: str, unit: str, oddity: str | None) -> None:
    assert old in TIMM_ARGS
    log = read_with(tmp_path, TIMM_ARGS.replace(old, new, 1))
    assert log.units["train_loss"] == unit
    assert len(log.oddities) == 1 + (oddity is not None)
    assert oddity is None or any(oddity in remark for remark in log.oddities)


def test_losses_without_accuracies_are_of_unknown_units(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write("epoch,train_loss,eval_loss,eval_mse\n0,0.5,0.25,0.25\n"))
    assert (log.format, log.units["eval_loss"]) == ("timm", "as logged")


def test_plain_labels(tmp_path: Path) -> None:
    assert read_with(tmp_path, "model: resnet50\nsmoothing: 0.0\n").units["train_loss"] == "nats"


def test_which_arguments_belong_to_a_summary(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    common, own = folder.write(TIMM_ARGS, "args.yaml"), folder.write(TIMM_ARGS, "args_a.yaml")
    assert timm.args_beside(tmp_path / "summary_a.csv") == own
    assert timm.args_beside(tmp_path / "summary_a.csv.gz") == own
    assert timm.args_beside(tmp_path / "summary_b.csv") == common
    assert timm.args_beside(tmp_path / "summary.csv") == common


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "lr: 1\n", "!!timestamp x", "a: 2020-99-99", "\x07"])
def test_arguments_that_are_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(LogError, match=r"args\.yaml: not "):
        timm.read_args(Source(Folder(tmp_path).write(text, "args.yaml")))
