"""Times fused Adan with its states in huge pages and in ordinary ones: `python benchmarks/pages.py`.

Each list is measured in fresh processes, in which both take turns with torch's fused AdamW; which of the
two was made first, and so got its memory first, alternates from process to process. See
optim/engine/layout.py.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parent.parent))  # last, so that an installed optim comes first

import optim
from benchmarks import optimizers as bench
from benchmarks.common import interleave, machine, publish, table
from optim.engine import layout

PAGES = {"2 MiB pages": layout._HUGE, "4 KiB pages": sys.maxsize}  # from how many bytes on they are huge


def measure(name: str, rounds: int, order: list[str]) -> dict[str, float]:
    """Seconds of a step, medians over rounds."""
    params = bench.make(bench.shapes(name), "cpu")
    steps = {bench.BASELINE: torch.optim.AdamW(params, fused=True).step}
    for key in order:
        optimizer = optim.Adan(params, fused=True, weight_decay=0.02)
        with mock.patch.object(layout, "_HUGE", PAGES[key]):
            optimizer.step()  # which makes the states
        steps[key] = optimizer.step
    return {key: statistics.median(series) for key, series in interleave(steps, rounds, name, "cpu").items()}


def markdown(about: dict[str, Any], lists: dict[str, list[dict[str, float]]]) -> str:
    """The result as a table."""
    rows = []
    for name, runs in lists.items():
        ratios = [run["2 MiB pages"] / run["4 KiB pages"] for run in runs]
        medians = [f"{1e3 * statistics.median(run[key] for run in runs):.2f}" for key in runs[0]]
        rows.append(
            [name, *medians, f"{statistics.median(ratios):.2f}", ", ".join(f"{x:.2f}" for x in ratios)]
        )
    times = [f"{key}, ms" for key in (bench.BASELINE, *PAGES)]
    header = ["list", *times, "2 MiB to 4 KiB", "each process"]
    lines = [
        "# Adan's states in huge pages",
        "",
        f"`{about['command']}` at commit {about['commit']}: {about['cpu']}, {about['threads']} threads, "
        f"torch {about['torch']}, Python {about['python']}, {about['path']}. Medians of interleaved rounds, "
        "then over processes.",
        *table(header, rows),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lists", nargs="+", metavar="LIST", default=bench.LISTS["cpu"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    parser.add_argument("--worker", nargs="+", metavar="PAGES", help="measure in this process and print JSON")
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(measure(options.lists[0], options.rounds, options.worker)))
        return 0
    lists: dict[str, list[dict[str, float]]] = {}
    for name in options.lists:
        command = [sys.executable, __file__, "--lists", name, "--rounds", str(options.rounds), "--worker"]
        for i in tqdm(range(options.processes), desc=name, disable=not sys.stderr.isatty()):
            order = list(PAGES)[:: 1 if i % 2 == 0 else -1]
            seen = subprocess.run([*command, *order], check=True, stdout=subprocess.PIPE, text=True)
            run = json.loads(seen.stdout)
            lists.setdefault(name, []).append({key: run[key] for key in [bench.BASELINE, *PAGES]})
    about = machine("cpu", [sys.argv[0], *(arguments or sys.argv[1:])])
    publish({"machine": about, "lists": lists}, markdown(about, lists), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
