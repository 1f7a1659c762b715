"""One thread for each test that does not ask for more: the tensors are small and the cores may be shared."""

import fcntl
import os
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings

import optim
from optim.card import PATHS

settings.register_profile("optim", deadline=None, derandomize=True)
settings.load_profile("optim")

NO_PRODUCT = SimpleNamespace(params={})


@pytest.hookimpl(tryfirst=True)  # before -m is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `exhaustive` what a covering part of each product of parameters does not need.

    The covering part has every optimizer on every path, and every value of every parameter on every path for
    each family of optimizers (those that keep a previous gradient, other elementwise ones, the rest). A test
    whose combinations each show something of their own names them: `@pytest.mark.every("name", "variant")`.
    Where the rules of a family cannot differ, one of them stands for all: `@pytest.mark.per_family`.
    The choice depends on the names of the tests alone. Tests without an optimizer are left as they are.
    """
    covered: set[tuple[object, ...]] = set()
    for item in sorted(items, key=lambda item: zlib.crc32(item.name.encode())):
        values = getattr(item, "callspec", NO_PRODUCT).params
        name, path = str(values.get("name")), values.get("path")
        if not (name in optim.CARDS or path in PATHS) or item.get_closest_marker("slow"):
            continue
        card = optim.CARDS.get(name, optim.CARDS["adan"])
        where = (item.path, item.originalname, path)
        family = (card.elementwise, card.previous)
        shown = {(*where, family, key, repr(value)) for key, value in values.items() if key != "name"}
        shown.add((*where, family if item.get_closest_marker("per_family") else card.name))
        for every in item.iter_markers("every"):
            shown.add((*where, *(repr(values[key]) for key in every.args)))
        if shown <= covered:
            item.add_marker("exhaustive")
        covered |= shown


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
