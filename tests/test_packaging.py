"""The package installs as a user installs it, with and without a compiler; same sources, same bytes."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("optim", "csrc", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
USE = """
import warnings; warnings.simplefilter("error")
import torch, adan_optim
from adan import Adan
assert adan_optim.__file__.startswith({site!r}), adan_optim.__file__
adan_optim.available()
print(adan_optim.__version__)
warnings.simplefilter("ignore", adan_optim.SlowPathWarning)
p = torch.nn.Parameter(torch.ones(3)); p.grad = torch.ones(3)
optimizer = Adan([p], lr=0.5); optimizer.step()
print(optimizer.path, p.tolist())
"""
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def copied(to: Path) -> Path:
    """The sources of the packages, as in a fresh checkout."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, to / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, to / name)
    return to


def build(what: str, source: Path, to: Path, **environment: str) -> Path:
    """Build a "wheel" or an "sdist" of the sources in a folder, without the network."""
    to.mkdir(parents=True)
    command = [sys.executable, "-c", BUILD, f"build_{what}", str(to)]
    env = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", **environment}
    subprocess.run(command, check=True, cwd=source, env=env, capture_output=True)
    (path,) = to.iterdir()
    return path


def used(site: Path, code: str) -> "subprocess.CompletedProcess[str]":
    """What a program prints that finds the packages in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=site, env=environment)


@pytest.mark.slow  # what is compiled is compiled by the installation, too
def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    """From a checkout anywhere, and from a source distribution."""
    first, second = (copied(tmp_path / name) for name in ("first", "second"))
    for path in second.rglob("*"):
        os.utime(path, (1e9, 1e9))
    sdist = build("sdist", first, tmp_path / "sdist")
    assert build("sdist", second, tmp_path / "again").read_bytes() == sdist.read_bytes()
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    wheels = [
        build("wheel", source, tmp_path / f"{source.name}-wheel") for source in (first, second, unpacked)
    ]
    assert len({wheel.read_bytes() for wheel in wheels}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [True, False])
def test_wheel_installs_and_runs(tmp_path: Path, compiler: bool) -> None:
    source, site = copied(tmp_path / "source"), tmp_path / "site"
    missing = {} if compiler else {"CXX": "/nonexistent/c++"}
    wheel = build("wheel", source, tmp_path / "wheel", **missing)
    assert ("-cp310-abi3-linux_" in wheel.name) == compiler
    assert ("-py3-none-any" in wheel.name) == (not compiler)
    ZipFile(wheel).extractall(site)
    installed = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    assert installed == {"adan_optim", "adan", "adam_mini"}  # recipes and commands belong to a checkout
    assert all((site / name / "py.typed").exists() for name in installed)
    for name in ("cuda.cu", "sums.cuh", "sums_order.h"):  # compiled where the GPU is
        assert (site / "adan_optim" / "_csrc" / name).exists()
    run = used(site, USE.format(site=str(site)))
    assert run.returncode == 0, run.stderr
    assert ("fused (CPU" in run.stdout) == compiler
    assert ("install a C++ compiler" in run.stdout) == (not compiler)
    assert "[0.5, 0.5, 0.5]" in run.stdout


@pytest.mark.parametrize(("module", "name"), [("adan", "adan"), ("adam_mini", "adam-mini")])
def test_an_official_package_is_noticed(tmp_path: Path, module: str, name: str) -> None:
    folder = tmp_path / f"{name.replace('-', '_')}-1.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    run = used(tmp_path, f"import {module}")
    assert f"<string>:1: UserWarning: the official package {name} 1.2 is installed, too" in run.stderr
    run = used(tmp_path, "import adan_optim; adan_optim.available()")
    assert run.stderr == ""
    assert f"the official package {name} 1.2" in run.stdout
