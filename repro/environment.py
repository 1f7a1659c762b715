"""Describe the software and the machine that produced a result."""

import os
import platform
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from repro.reading import read_bytes

_PACKAGES = ("torch", "accelerate", "timm", "transformers", "datasets", "numpy", "safetensors", "hydra-core")


def environment() -> dict[str, Any]:
    """Describe the software and the machine: versions, commit, devices, threads, command."""
    import torch  # here, as almost every command imports this module

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [word for word in sys.argv if not word.startswith(("hydra.", "hydra/"))],  # ours, see cli
        "commit": commit(),
        "python": platform.python_version(),
        "versions": versions,
        "system": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
        "cuda": cuda,
        "threads": torch.get_num_threads(),
    }


def commit(checkout: Path | None = None) -> str | None:
    """Return the commit of a checkout (default: this one), with `-dirty` if tracked files differ.

    Without git, it is that of the Docker image.
    """
    folder = Path(__file__).parent if checkout is None else checkout
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    image = os.environ.get("ADAN_COMMIT") or None  # set by docker/Dockerfile
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return image
    return done.stdout.strip() or image


def _processor() -> str:
    """Return the CPU's name from Linux, or else from Python."""
    try:
        found = re.search(rb"model name\s*: (.*)", read_bytes(Path("/proc/cpuinfo")))
    except OSError:
        found = None
    return found[1].decode() if found else platform.processor()
