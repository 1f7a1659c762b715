"""scripts/compare.py on runs of the toy task."""

import copy
import json
import runpy
from pathlib import Path

import pytest
from PIL import Image
from toy import ToyTask

from repro.config import TrainConfig
from repro.loop import train

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
        assert image.size == (1500, 600)


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
