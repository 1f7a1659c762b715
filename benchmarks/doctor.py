"""Measure how often the doctor is right.

Trains tiny runs of real recipes, healthy and with a planted fault (both in benchmarks/doctor_faults.py), and
reads the runs in results/ and the released logs in $ADAN_RELEASED. Counts whether the cause that
scripts/doctor.py names first is the planted one. Outcomes are appended to DIR/outcomes.jsonl: a study that
was stopped continues, and one that is finished only prints its page.

Examples:
    python benchmarks/doctor.py
    python benchmarks/doctor.py --only lstm --out runs/doctor
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from repro.train.cli import command_line


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("results/doctor"))
    parser.add_argument("--runs", type=Path, metavar="DIR", default=Path("runs/doctor"), help="run folders")
    parser.add_argument("--seed", type=int, default=1, help="of all runs (default: 1)")
    parser.add_argument("--only", metavar="TEXT", default="", help="jobs whose name contains TEXT")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import contextlib
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.common import machine, made
from benchmarks.doctor_faults import HEALTHY, PLANTS, Plant, run
from repro.doctor.causes import CAUSES
from repro.doctor.diagnosis import diagnose, title
from repro.doctor.record import read_record
from repro.ledger.rows import ROOT
from repro.loading import read_lines
from repro.logs import files
from repro.results import as_text, page, table
from repro.runs import CONFIG, METRICS
from repro.train.cli import exit_status
from repro.train.run_folder import refuse_foreign_page, write_atomically

OUTCOMES = "outcomes.jsonl"
Outcome = dict[str, Any]
# What the thresholds in repro/doctor were chosen with, besides runs of the seeds 0 and 100.
LOOKED_AT = ("results/", "released/CV/")


@dataclass(frozen=True)
class Job:
    """A run or log to judge."""

    name: str
    planted: str  # a cause, or "healthy"
    get: Callable[[], Path]  # train it if need be, and return where it is


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, print the page and write it; return the exit status."""
    options = read_options(arguments)
    readme = options.out / "README.md"
    refuse_foreign_page(readme, "benchmarks/doctor.py")
    torch.set_num_threads(1)  # the models are so small that more are slower
    about = machine("cpu", arguments)
    outcomes = [outcome for _, outcome in read_lines(options.out / OUTCOMES, dict)]
    known = {outcome["name"] for outcome in outcomes}
    options.out.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs(options) if job.name not in known and options.only in job.name]
    for job in tqdm(missing, desc="runs", disable=None):
        outcome = judge(job) | {"commit": about["commit"], "processor": about["processor"]}
        outcomes.append(outcome)
        with (options.out / OUTCOMES).open("a") as file:
            file.write(json.dumps(outcome) + "\n")
    text = describe(outcomes, about)
    print(as_text(text))
    write_atomically(readme, text + "\n")
    return 0


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Yield the planted runs, the healthy ones, and the runs and logs at hand."""

    def training(plant: Plant) -> Callable[[], Path]:
        short = hashlib.sha256(plant.name.encode()).hexdigest()[:8]
        name = f"{plant.cause or 'healthy'}-{plant.recipe}-{short}"
        return lambda: run(plant, options.seed, options.runs, name)

    for plant in (*PLANTS, *HEALTHY):
        yield Job(f"{plant.name} seed={options.seed}", plant.cause or "healthy", training(plant))
    for config in sorted((ROOT / "results").glob(f"**/{CONFIG}")):
        if (config.parent / METRICS).exists():
            yield _at_hand(config.parent.relative_to(ROOT).as_posix(), config.parent)
    released = files.folder()
    for path in sorted(released.glob("**/exp_results/**/*")):
        if path.suffix in (".csv", ".txt", ".log"):
            yield _at_hand(f"released/{path.relative_to(released).as_posix()}", path)


def _at_hand(name: str, path: Path) -> Job:
    return Job(name, "healthy", lambda: path)


def judge(job: Job) -> Outcome:
    """Return what the doctor says about a run."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        path = job.get()
    diagnosis = diagnose(read_record([path]))
    first = diagnosis.likeliest
    return {
        "name": job.name,
        "planted": job.planted,
        "named": first.cause if first else "healthy",
        "evidence": first.evidence if first else "",
        "also": [each.cause for each in diagnosis.findings if each.likely and each is not first],
        "possible": [each.cause for each in diagnosis.findings if not each.likely],
        "not_judged": list(diagnosis.unjudged),
    }


def describe(outcomes: Sequence[Outcome], about: dict[str, Any]) -> str:
    """Return the page."""
    chosen_with = [outcome for outcome in outcomes if outcome["name"].startswith(LOOKED_AT)]
    reported = [outcome for outcome in outcomes if outcome not in chosen_with]
    planted = [outcome for outcome in reported if outcome["planted"] != "healthy"]
    right = [outcome for outcome in planted if outcome["named"] == outcome["planted"]]
    wrong = [outcome for outcome in planted if outcome not in right]
    alarms = [o for o in outcomes if o["planted"] == "healthy" and o["named"] != "healthy"]
    return page(
        "How often the doctor is right",
        made(about) + " Script: benchmarks/doctor.py, docs: [docs/doctor.md](../../docs/doctor.md).",
        _rate("Planted faults named right: ", len(right), len(planted)) + ".",
        "Runs are tiny: a ViT of two layers on digits, a GPT-2 of two layers and an LSTM on Python's "
        "documentation, each with Adan and with AdamW, for 150 to 400 steps, under the monitor. The settings "
        "that plant each fault are in benchmarks/doctor_faults.py; outcomes.jsonl has the evidence that was "
        "given for each run. The seeds are 1 and, for healthy runs, 2; the thresholds were chosen with runs "
        "of the same settings and the seeds 0 and 100.",
        "## Planted faults",
        table(("planted", "runs", "named first", "among the likely", "named instead"), _confusion(planted)),
        "Runs in which another cause was named first, or none:" if wrong else "",
        _listed(wrong),
        "## Healthy runs",
        table(("what", "runs", "false alarms", ""), _healthy(outcomes)),
        "The last row has the runs in results/ and the released logs of images, with which the thresholds "
        "were chosen: it is no evidence.",
        "The false alarms:" if alarms else "",
        _listed(alarms),
    )


def _confusion(planted: Sequence[Outcome]) -> Iterator[list[str]]:
    for cause in CAUSES:
        mine = [outcome for outcome in planted if outcome["planted"] == cause]
        others = Counter(outcome["named"] for outcome in mine if outcome["named"] != cause)
        first = sum(outcome["named"] == cause for outcome in mine)
        likely = first + sum(cause in outcome["also"] for outcome in mine)
        instead = ", ".join(
            f"{'nothing' if name == 'healthy' else title(name)} {count}" for name, count in others.items()
        )
        yield [title(cause), str(len(mine)), str(first), str(likely), instead]


def _healthy(outcomes: Sequence[Outcome]) -> Iterator[list[str]]:
    healthy = [outcome for outcome in outcomes if outcome["planted"] == "healthy"]
    old = [outcome for outcome in healthy if outcome["name"].startswith(LOOKED_AT)]
    fresh = [outcome for outcome in healthy if outcome["name"].startswith("healthy ")]
    released = [outcome for outcome in healthy if outcome not in old and outcome not in fresh]
    kinds = {"tiny runs": fresh, "released logs": released, "together": fresh + released}
    for what, mine in (kinds | {"chosen with": old}).items():
        alarms = sum(outcome["named"] != "healthy" for outcome in mine)
        yield [what, str(len(mine)), str(alarms), f"{alarms / max(len(mine), 1):.1%}"]


def _listed(outcomes: Sequence[Outcome]) -> str:
    return "\n".join(
        f"* {o['name']}: {'nothing' if o['named'] == 'healthy' else title(o['named'])}"
        + (f" ({o['evidence']})" if o["evidence"] else "")
        for o in outcomes
    )


def _rate(what: str, part: int, whole: int) -> str:
    return f"{what}{part} of {whole}" + (f", {part / whole:.1%}" if whole else "")


if __name__ == "__main__":
    sys.exit(main())
