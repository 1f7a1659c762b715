"""What the tests of the vision recipes share."""

from collections.abc import Callable

import pytest
import torch

from vision.train import main


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Threads cost more than they bring for models this small."""
    torch.set_num_threads(1)


@pytest.fixture
def command(
    runner: Callable[..., Callable[..., tuple[int, str, str]]],
) -> Callable[..., tuple[int, str, str]]:
    """Run vision/train.py in an empty folder; returns (exit status, stdout, stderr)."""
    return runner(main)
