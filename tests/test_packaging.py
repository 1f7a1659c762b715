"""The package installs as a user installs it: from a wheel, with and without a C++ compiler."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]
USE = """
import warnings; warnings.simplefilter("error")
import torch, optim
from adan import Adan
assert optim.__file__.startswith({site!r}), optim.__file__
optim.available()
p = torch.nn.Parameter(torch.ones(3)); p.grad = torch.ones(3)
optimizer = Adan([p], lr=0.5); optimizer.step()
print(optimizer.path, p.tolist())
"""


@pytest.mark.slow  # what is compiled is compiled by the installation, too
@pytest.mark.parametrize("compiler", [True, False])
def test_wheel_installs_and_runs(tmp_path: Path, compiler: bool) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    for name in ("optim", "csrc"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("adan.py", "adam_mini.py", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    missing = {} if compiler else {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
    environment = {**os.environ, **missing}
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(source)]
    subprocess.run(
        build, check=True, env=environment, capture_output=True
    )  # torch is not in the build environment
    (wheel,) = tmp_path.glob("*.whl")
    assert ("-cp310-abi3-linux_" in wheel.name) == compiler
    assert ("-py3-none-any" in wheel.name) == (not compiler)
    ZipFile(wheel).extractall(site)
    installed = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    assert installed == {"optim", "adan.py", "adam_mini.py"}  # recipes and commands belong to a checkout
    for name in ("cuda.cu", "sums.cuh", "sums_order.h"):  # compiled where the GPU is
        assert (site / "optim" / "_csrc" / name).exists()
    run = subprocess.run(
        [sys.executable, "-c", USE.format(site=str(site))],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert run.returncode == 0, run.stderr
    assert ("fused (CPU" in run.stdout) == compiler
    assert ("install a C++ compiler" in run.stdout) == (not compiler)
    assert "[0.5, 0.5, 0.5]" in run.stdout
