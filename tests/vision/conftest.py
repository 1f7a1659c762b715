"""The command in this process: starting a new one for every test would take minutes of imports."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vision.train import main


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Threads cost more than they bring for models this small."""
    torch.set_num_threads(1)


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run vision/train.py in an empty folder; returns (exit status, stdout, stderr)."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(list(arguments))
        out, err = capfd.readouterr()
        return status, out, err

    return run
