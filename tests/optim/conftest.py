"""One thread for each test that does not ask for more: the tensors are small and the cores may be shared."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from products import beyond_covering

settings.register_profile("optim", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("optim")

# They use benchmarks/, which needs Python 3.11 as all but optim/ does.
collect_ignore = ["test_cuda_budgets.py", "test_ptx.py"] if sys.version_info < (3, 11) else []


@pytest.hookimpl(tryfirst=True)  # before -m is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in beyond_covering(items):
        item.add_marker("exhaustive")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def compile_once(tmp_path_factory) -> Callable[[list[str], str], Path]:
    """Compiles a shared library of a name, unless another worker of this run has; returns its path."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers

    def compiled(command, name):
        library, partial = folder / f"{name}.so", folder / f"{name}.partial"
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.exists():
                subprocess.run([*command, "-shared", "-fPIC", "-o", str(partial)], check=True)
                partial.rename(library)
        return library

    return compiled
