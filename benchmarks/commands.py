"""Measure how soon commands answer.

    --help           of every command
    a misspelt key   of every recipe
    others           what scripts/reproduce.py and scripts/report.py show of the rows and of results/

Numbers are seconds of processor time, user and system, of a process and its children, which hardly depend on
what else the machine does: the median over the rounds. Bytecode and cached rows are in a temporary folder,
and were written in a round that does not count. `torch` says whether torch was imported; the last row is its
import alone, for comparison.

Examples:
    python benchmarks/commands.py --only scripts/report.py
    python benchmarks/commands.py --out results/bench/commands
"""

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import check, machine, made, parser
from repro.ledger.rows import ROOT
from repro.results import page, publish, table
from repro.train.cli import exit_status

TREES = ("optim", "scripts", "benchmarks", "vision", "nlp", "llm", "docker")
GUARD = re.compile(r'^if __name__ == "__main__":$', re.M)
RECIPE = re.compile(r"^(main = command|@entry_point)\(", re.M)
ROW = "imagenet/vit_s_150_i"
OTHERS = (
    ["scripts/reproduce.py", "--list"],
    ["scripts/reproduce.py", ROW, "--dry-run"],
    ["scripts/reproduce.py", ROW, "--dry-run", "epochs=3"],
    ["scripts/report.py", "results"],
    ["-c", "import torch"],
)


def commands() -> list[str]:
    """Return the files of all commands, relative to the root."""
    files = (path for tree in TREES for path in sorted((ROOT / tree).rglob("*.py")))
    return [str(path.relative_to(ROOT)) for path in files if GUARD.search(path.read_text())]


def recipes() -> list[str]:
    """Return those of the commands that are configured by Hydra."""
    return [command for command in commands() if RECIPE.search((ROOT / command).read_text())]


def started(command: str) -> list[str]:
    """Return the words after `python` that start a command: its file, or -m and its package."""
    path = Path(command)
    package = ".".join(path.parent.parts).removeprefix("optim.")  # the folder of the packages
    return ["-m", package] if path.stem == "__main__" else [command]


def cases() -> list[list[str]]:
    """Return what is measured, as words after `python`."""
    return [
        *([*started(command), "--help"] for command in commands()),
        *([command, "optimzer=adan"] for command in recipes()),
        *map(list, OTHERS),
    ]


def measure(words: Sequence[str], scratch: Path, rounds: int) -> dict[str, Any]:
    """Return the seconds of processor time in each round, the exit status, and whether torch was imported."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    folders = {"XDG_CACHE_HOME": scratch / "cache", "PYTHONPYCACHEPREFIX": scratch / "bytecode"}
    environment = (
        clean | {"PYTHONPATH": f"{ROOT}:{ROOT}/optim"} | {key: str(path) for key, path in folders.items()}
    )
    words = [*words, "--out", str(scratch / "page.html")] if "scripts/report.py" in words[:1] else words

    def run(*options: str) -> tuple[float, "subprocess.CompletedProcess[str]"]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, *options, *words]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done

    _, first = run("-X", "importtime")
    seconds, done = zip(*(run() for _ in range(rounds)), strict=True)
    torch = re.search(r"^import time:.*\| *torch$", first.stderr, re.M) is not None
    return {"seconds": seconds, "status": done[-1].returncode, "torch": torch}


def markdown(result: dict[str, Any]) -> str:
    """Return the page of a result."""
    rows = [
        [
            f"`python {' '.join(run['words'])}`",
            f"{statistics.median(run['seconds']):.2f}",
            "yes" if run["torch"] else "",
            str(run["status"]),
        ]
        for run in result["runs"]
    ]
    about = result["machine"]
    return page(
        "How soon commands answer",
        f"{made(about)} Seconds of processor time, medians of {result['rounds']} rounds with bytecode and "
        "cached rows. `--help` explains the numbers.",
        table(["command", "seconds", "torch", "exit status"], rows),
    )


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    found = parser(__doc__)
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--only", nargs="+", metavar="FILE", help="of these commands, as scripts/report.py")
    return found.parse_args(arguments)


@exit_status
def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write, and return the exit status."""
    options = read_options(arguments)
    check(options, "rounds")
    wanted = [words for words in cases() if not options.only or any(map(options.only.__contains__, words))]
    with tempfile.TemporaryDirectory() as scratch:
        runs = [
            {"words": words, **measure(words, Path(scratch), options.rounds)}
            for words in tqdm(wanted, unit="command", disable=None)
        ]
    result = {"machine": machine("cpu", arguments), "rounds": options.rounds, "runs": runs}
    publish(result, markdown(result), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
