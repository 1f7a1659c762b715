"""Commands in this process: starting a new one for every test would take minutes of imports."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Threads cost more than they bring for models this small."""
    torch.set_num_threads(1)


@pytest.fixture
def runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[Callable[[Sequence[str]], int]], Run]:
    """Turn a command's `main` into a function of its arguments that returns (exit status, stdout, stderr).

    It runs in an empty folder.
    """
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def of(main: Callable[[Sequence[str]], int]) -> Run:
        def run(*arguments: str) -> tuple[int, str, str]:
            capfd.readouterr()
            status = main(list(arguments))
            out, err = capfd.readouterr()
            return status, out, err

        return run

    return of
