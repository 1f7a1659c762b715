"""What the tests of the language recipes share."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Threads cost more than they bring for models this small."""
    torch.set_num_threads(1)
