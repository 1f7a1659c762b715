"""scripts/adan_from_adamw.py: the table, the YAML, the errors."""

import runpy
from pathlib import Path

import pytest
import yaml

import adan_optim
from adan_optim.interop.advice import REGIMES

MAIN = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "adan_from_adamw.py"))["main"]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert MAIN(["--lr", "1e-3", "--weight-decay", "0.05", "--warmup", "500", "--regime", "finetune"]) == 0
    settings = adan_optim.adan_from_adamw(lr=1e-3, weight_decay=0.05, warmup=500, regime="finetune")
    table, text = capsys.readouterr().out.split("\n\n")
    assert table == str(settings)
    assert yaml.safe_load(text)["lr"] == 0.003


def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert MAIN(["--lr", "-1"]) == 2
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "error: lr=-1.0: must be a finite number >= 0\n")
    for regime in REGIMES:
        assert MAIN(["--lr", "1", "--regime", regime]) == 0
    with pytest.raises(SystemExit):
        MAIN(["--lr", "1", "--regime", "rl"])
    assert "invalid choice: 'rl'" in capsys.readouterr().err
