"""What the benchmarks share: the clock, taking turns, the machine, tables and result files."""

import json
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import optim

Step = Callable[[], Any]
WARM_UP = {"cpu": 3, "cuda": 10}  # rounds


def seconds(step: Step, device: str) -> float:
    """Time of a step that starts on an idle device."""
    if device == "cpu":
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def interleave(
    steps: dict[str, Step],
    rounds: int,
    title: str,
    device: str,
    before: Callable[[int], None] = lambda round: None,
) -> dict[str, list[float]]:
    """Seconds of each step in each round; the rounds of the warm-up are left out."""
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    warm_up = WARM_UP[device]
    for i in tqdm(range(rounds + warm_up), desc=title, leave=False, disable=not sys.stderr.isatty()):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            before(i)
            times[name].append(seconds(steps[name], device))
    return {name: series[warm_up:] for name, series in times.items()}


def machine(device: str, command: list[str]) -> dict[str, Any]:
    """Where the numbers come from."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    about = {
        "command": shlex.join(["python", *command]),
        "commit": commit.stdout.strip() or "unknown",
        "device": device,
        "cpu": model.group(1) if model else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "path": optim.Adan([torch.nn.Parameter(torch.zeros(1, device=device))]).path,
    }
    return about | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def table(header: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["", *("| " + " | ".join(cells) + " |" for cells in lines)]


def publish(result: dict[str, Any], page: str, out: Path | None) -> None:
    """Print a result's page; write OUT.json and OUT.md if there is an OUT."""
    print(page)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        out.with_suffix(".md").write_text(page)
