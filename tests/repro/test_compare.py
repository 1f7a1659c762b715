"""scripts/compare.py on runs of the toy task."""

import copy
import json
import re
import runpy
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image, ImageColor
from toy import ToyTask

from repro.plots import LOOKS, MOST, look
from repro.train.config import TrainConfig
from repro.train.trainer import train

COMPARE = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "compare.py"))["main"]


def test_table_and_curves(config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("adan", "adamw"):
        for seed in (0, 1):
            run = copy.deepcopy(config)
            run.seed, run.optimizer = seed, {"name": name, "lr": 0.01}
            train(ToyTask(), run, f"{name}{seed}")
    capsys.readouterr()
    assert COMPARE([config.run.root, "--out", str(tmp_path / "figures" / "curves.png")]) == 0
    header, _, *rows = capsys.readouterr().out.splitlines()[:4]
    assert header.split()[:3] == ["run", "seeds", "epochs"]
    assert [row.split()[:3] for row in rows] == [["adamw", "2", "4"], ["adan", "2", "4"]]
    assert all(" ± " in row for row in rows)
    with Image.open(tmp_path / "figures" / "curves.png") as image:
        drawn = {pixel for _, pixel in image.convert("RGB").getcolors(1 << 24) or []}
    assert {ImageColor.getrgb(look(name).colour) for name in ("adan", "adamw")} <= drawn
    svg = (tmp_path / "figures" / "curves.svg").read_text()
    assert all(text in svg for text in ("adan (2 seeds)", "adamw (2 seeds)", "band", "lower is better"))


def write_run(folder: Path, values: Sequence[float], ended: bool = True, metric: str = "valid_loss") -> None:
    """A run folder: a measurement of `metric` per epoch, a training record, a closing record."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"seed: {folder.name[-1]}\noptimizer: {{name: {folder.name[:-1]}}}\n")
    measured = [
        {"step": 10 * i, "lr": 0.1, "epoch": i, "train_loss": 1.0, metric: value}
        for i, value in enumerate(values, 1)
    ]
    between = {"step": 5, "lr": 0.1, "epoch": 0.5, "train_loss": 2.0, "grad_norm": 1.0}
    closing = {
        "step": 10 * len(values),
        "lr": 0.1,
        "epoch": len(values),
        "weights_of_step": 10,
        "test_loss": 9.0,
    }
    records = [between, *measured, *([closing] if ended else [])]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if ended:
        best = min(measured, key=lambda record: record[metric])
        speed = {"images_per_second": 1466.9, "wait_share": 0.1, "tflop_per_second": 0.013, "mfu": 0.1}
        summary = {"metric": metric, "final": measured[-1], "best": best, "seconds": 60.0, **speed}
        (folder / "summary.json").write_text(json.dumps(summary))


def compared(root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    """The cells of the table of the runs below `root`, by label and column; a figure is next to them."""
    assert COMPARE([str(root), "--out", str(root / "curves.png")]) == 0
    header, _, *rows = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()[:-2]]
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_the_speed_is_in_samples_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The summary has TFLOP/s as well, which are no samples."""
    write_run(tmp_path / "adan0", [3.0, 1.0, 2.0])
    assert compared(tmp_path, capsys)["adan"] == {
        "run": "adan", "seeds": "1", "epochs": "3", "final valid_loss": "2", "best valid_loss": "1",
        "train_loss": "1.0000", "time": "60 s", "images/s": "1,467",
    }  # fmt: skip


def test_only_finished_runs_have_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "adan0", [3.0, 2.0])
    write_run(tmp_path / "adan1", [5.0, 4.0])
    write_run(tmp_path / "adan2", [9.0], ended=False)
    write_run(tmp_path / "lamb0", [8.0], ended=False)
    (tmp_path / "lamb0" / "diverged.json").write_text("{}")
    rows = compared(tmp_path, capsys)
    assert {label: row["final valid_loss"] for label, row in rows.items()} == {
        "adan": "3 ± 1.414",
        "adan (unfinished)": "-",
        "lamb (diverged)": "-",
    }
    assert rows["adan (unfinished)"]["best valid_loss"] == rows["adan (unfinished)"]["images/s"] == "-"
    assert rows["adan (unfinished)"]["epochs"] == "1"


@pytest.mark.parametrize(
    ("values", "metric", "finding"),
    [
        ({"adan0": [3, 1], "lamb0": [3, 2]}, "valid_loss", "Lowest final valid loss: adan, 1; next lamb, 2"),
        (
            {"adan0": [50, 60], "lamb0": [50, 70]},
            "test_accuracy",
            "Highest final test accuracy: lamb, 70 %; next adan, 60 %",
        ),
        (
            {"adan0": [3, 1], "adan1": [3, 3], "lamb0": [3, 2.5]},
            "valid_loss",
            "Lowest final valid loss: adan, 2; next lamb, 2.5; the ranges of\ntheir seeds overlap",
        ),
        ({"adan0": [3, 1], "lamb0": [3, 2, 1]}, "valid_loss", "Valid loss over epochs"),  # of other lengths
        ({"adan0": [3, 1], "lamb0": [3, 2]}, "valid_length", "Valid length over epochs"),
    ],
)
def test_the_title_says_what_was_found(
    tmp_path: Path, values: dict[str, list[float]], metric: str, finding: str
) -> None:
    for name, each in values.items():
        write_run(tmp_path / name, each, metric=metric)
    assert COMPARE([str(tmp_path), "--out", str(tmp_path / "x")]) == 0
    svg = (tmp_path / "x.svg").read_text()
    assert all(line in svg for line in finding.split("\n"))
    assert ("may be chance" in svg) == ("adan1" not in values)


def test_more_runs_than_can_be_told_apart(tmp_path: Path) -> None:
    names = [*LOOKS][: MOST + 3]
    for place, name in enumerate(names):
        write_run(tmp_path / f"{name}0", [20.0, 20.0 - place])
    assert COMPARE([str(tmp_path), "--out", str(tmp_path / "x")]) == 0
    svg = (tmp_path / "x.svg").read_text()
    assert [f">{name}<" in svg for name in names] == [False] * 3 + [True] * MOST  # the best
    assert "In grey: 3 more" in svg


def test_runs_of_different_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "adan0", [3.0])
    write_run(tmp_path / "lamb0", [3.0], metric="valid_accuracy")
    assert COMPARE([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(metric in line for metric in ("valid_loss", "valid_accuracy"))


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert COMPARE([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: {tmp_path / 'none'}: no run in it (no metrics.jsonl, there or below)"
    ]
    (tmp_path / "metrics.jsonl").write_text("")
    assert COMPARE([str(tmp_path)]) == 2
    assert "config.yaml: No such file or directory" in capsys.readouterr().err


def test_what_tracking_adds_is_no_measure(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    train(ToyTask(), config, "run")
    path = Path(config.run.root) / "toy" / "run"
    (path / "summary.json").unlink()  # an unfinished run names no metric
    capsys.readouterr()
    assert COMPARE([str(path)]) == 0
    plain = capsys.readouterr().out
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    tracked = [{**record, "released_accuracy": 1.0, "verdict": "behind"} for record in records]
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in tracked))
    assert COMPARE([str(path)]) == 0
    assert capsys.readouterr().out == plain
