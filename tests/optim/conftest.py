"""One thread for each test that does not ask for more: the tensors are small and the cores may be shared."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("optim", deadline=None, derandomize=True)
settings.load_profile("optim")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
