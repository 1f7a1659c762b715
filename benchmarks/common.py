"""What the benchmarks share: command line, clock, turns, fresh processes, a description of the machine."""

import argparse
import functools
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

import adan_optim
from repro.environment import environment
from repro.errors import UserError
from repro.train.cli import command_line

Key = TypeVar("Key")
Result = TypeVar("Result")
Step = Callable[[], Any]
WARM_UP = {"cpu": 3, "cuda": 10}  # rounds


def seconds(step: Step, device: str) -> float:
    """Return the time of a step that starts on an idle device."""
    if device == "cpu":
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def take_turns(
    runs: Mapping[Key, Callable[[], Result]],
    rounds: int,
    title: str,
    before: Callable[[int], None] = lambda round: None,
) -> dict[Key, list[Result]]:
    """Return what each of `runs` returns in each round; the order rotates.

    Args:
        before: called with the number of the round before each run.
    """
    keys = list(runs)
    results: dict[Key, list[Result]] = {key: [] for key in keys}
    for i in tqdm(range(rounds), desc=title, leave=False, disable=None):
        for key in keys[i % len(keys) :] + keys[: i % len(keys)]:
            before(i)
            results[key].append(runs[key]())
    return results


def interleave(
    steps: Mapping[str, Step],
    rounds: int,
    title: str,
    device: str,
    before: Callable[[int], None] = lambda round: None,
) -> dict[str, list[float]]:
    """Return the seconds of each step in each round, without the rounds of the warm-up."""
    timed = {name: functools.partial(seconds, step, device) for name, step in steps.items()}
    times = take_turns(timed, WARM_UP[device] + rounds, title, before)
    return {name: series[WARM_UP[device] :] for name, series in times.items()}


def fresh(commands: Iterable[Sequence[str]], title: str) -> list[Any]:
    """Run Python commands, each in its own process, and return the JSON that they print."""
    commands = [[sys.executable, *command] for command in commands]
    bar = tqdm(commands, desc=title, disable=None)
    runs = (subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True) for command in bar)
    return [json.loads(run.stdout) for run in runs]


def parser(doc: str | None, device: bool = False) -> argparse.ArgumentParser:
    """Return the parser of a benchmark with its docstring: --out, and --device if there is a choice."""
    found = command_line(doc)
    if device:
        found.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    found.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    return found


def check(options: argparse.Namespace, *counts: str) -> None:
    """Raise UserError if one of `counts` is given and below 1, or if the device does not exist."""
    for name in counts:
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if getattr(options, "device", "cpu") == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no CUDA GPU here; leave it out to measure on the CPU")


def machine(device: str, arguments: Sequence[str] | None) -> dict[str, Any]:
    """Return where the numbers come from: the environment, the device, and the command.

    Args:
        arguments: those of `main`; None means those of the process.
    """
    import torch

    here = environment()
    about = {
        "command": shlex.join(["python", sys.argv[0], *(sys.argv[1:] if arguments is None else arguments)]),
        "commit": here["commit"] or "unknown",
        "device": device,
        "cpu": here["processor"],
        "torch": torch.__version__,
        "path": adan_optim.Adan([torch.nn.Parameter(torch.zeros(1, device=device))]).path,
    }
    return here | about | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def made(about: dict[str, Any], *more: str) -> str:
    """Return a sentence that says where the numbers come from, with `more` at its end."""
    gpu = f"{about['gpu']}, host " if about["device"] == "cuda" else ""
    parts = [f"{gpu}{about['cpu']}", f"{about['threads']} threads", f"torch {about['torch']}"]
    parts += [f"Python {about['python']}", *more]
    return f"`{about['command']}` at commit {about['commit']}: {', '.join(parts)}."
