"""What the benchmarks share: the command line, the clock, taking turns, fresh processes, the machine."""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import optim
from repro.environment import environment
from repro.errors import UserError
from repro.train.cli import command_line

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
    steps: Mapping[str, Step],
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


def fresh(commands: Iterable[Sequence[str]], title: str) -> list[Any]:
    """What commands of Python print as JSON, each in a process of its own."""
    commands = [[sys.executable, *command] for command in commands]
    bar = tqdm(commands, desc=title, disable=not sys.stderr.isatty())
    runs = (subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True) for command in bar)
    return [json.loads(run.stdout) for run in runs]


def parser(doc: str | None, device: bool = False) -> argparse.ArgumentParser:
    """The command line of a benchmark with its docstring: --out, and --device where there is a choice."""
    found = command_line(doc)
    if device:
        found.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    found.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    return found


def check(options: argparse.Namespace, *counts: str) -> None:
    """Raise UserError if an option that counts something is given and below 1, or there is no such device."""
    for name in counts:
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if getattr(options, "device", "cpu") == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA GPU here; leave it out to measure on the CPU")


def machine(device: str, arguments: Sequence[str] | None) -> dict[str, Any]:
    """Where the numbers come from: what `environment` says, and the device; `arguments` are as of `main`."""
    here = environment()
    about = {
        "command": shlex.join(["python", sys.argv[0], *(sys.argv[1:] if arguments is None else arguments)]),
        "commit": here["commit"] or "unknown",
        "device": device,
        "cpu": here["processor"],
        "torch": torch.__version__,
        "path": optim.Adan([torch.nn.Parameter(torch.zeros(1, device=device))]).path,
    }
    return here | about | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def made(about: dict[str, Any], *more: str) -> str:
    """A sentence that says where the numbers come from, and more about it."""
    gpu = f"{about['gpu']}, host " if about["device"] == "cuda" else ""
    parts = [f"{gpu}{about['cpu']}", f"{about['threads']} threads", f"torch {about['torch']}"]
    parts += [f"Python {about['python']}", *more]
    return f"`{about['command']}` at commit {about['commit']}: {', '.join(parts)}."
