"""Does a result count in modded-nanogpt's optimization benchmark? `python llm/speedrun/significance.py LOGS`.

The rule (3 of track 3): with the mean validation loss of n runs that were not selected,
(3.28 - mean) sqrt(n) >= 0.004, a one-sided z-test at p < 0.001 with a standard deviation of 0.0013.

    LOGS                     logs of the benchmark's scripts or of ours; one may have several runs
    --losses 3.2761 3.2772   losses instead of logs
    --mean 3.2778 --runs 10  or their mean and number
    --against 4950 3.2776 10 is it also better than a result with these steps, mean and runs?
    --power                  how likely does a result pass, by its true mean and the number of runs?
    --published              the public results (published.csv): is every verdict what the rule says?

The exit status is 0 if the result counts, 1 if it does not, and 2 after an error.
"""

import argparse
import csv
import math
import re
import statistics
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from adan_optim.text import aligned
from repro.errors import UserError
from repro.reading import read_bytes
from repro.train.cli import command_line, exit_status

TARGET, THRESHOLD = Fraction("3.28"), Fraction("0.004")  # nats per token; exact, as the rule is "at least"
SIGMA = 0.0013  # standard deviation over seeds that the rule assumes
SLOPE = Fraction("0.0045") / 100  # loss that a step is worth near the target, for comparing two results
PUBLISHED = Path(__file__).with_name("published.csv")

LINE = re.compile(r"^step:(\d+)/(\d+) val_loss:(\S+)", re.M)


class Result(NamedTuple):
    """Runs of one setting, judged at the same step."""

    mean: Fraction  # nats per token
    runs: int
    step: int | None = None  # None: not known


class Run(NamedTuple):
    """The validation losses of a run by step, as written, and the number of steps it was to have."""

    losses: dict[int, str]
    steps: int


def statistic(result: Result) -> float:
    """Return (3.28 - mean) sqrt(n), which must be at least 0.004."""
    return float(TARGET - result.mean) * math.sqrt(result.runs)


def counts(result: Result) -> bool:
    """Return whether the rule holds, without rounding."""
    gap = TARGET - result.mean
    return gap > 0 and gap**2 * result.runs >= THRESHOLD**2


def runs_needed(mean: Fraction) -> int | None:
    """Return the number of runs with which a mean counts; None: no number is enough."""
    return math.ceil((THRESHOLD / (TARGET - mean)) ** 2) if mean < TARGET else None


def pairwise(new: Result, old: Result) -> float:
    """Return the statistic of a result against another one, which must be at least 0.004 as well.

    It is the difference of the means, plus what the difference of the steps is worth, over
    sqrt(1/n + 1/n'). Both steps must be known.
    """
    assert new.step is not None
    assert old.step is not None
    gain = old.mean - new.mean + (old.step - new.step) * SLOPE
    return float(gain) / math.sqrt(1 / new.runs + 1 / old.runs)


def power(margin: float, runs: int, sigma: float = SIGMA) -> float:
    """Return the probability that n runs count whose true mean is 3.28 - margin."""
    return statistics.NormalDist().cdf((margin * math.sqrt(runs) - float(THRESHOLD)) / sigma)


def runs_for(margin: float, probability: float, sigma: float = SIGMA) -> int:
    """Return the fewest runs that count with a probability, if the true mean is 3.28 - margin."""
    needed = float(THRESHOLD) + sigma * statistics.NormalDist().inv_cdf(probability)
    return max(1, math.ceil((needed / margin) ** 2))


def power_table(sigma: float) -> str:
    """Return the probabilities by margin and number of runs, and the runs for 90 %."""
    numbers = (1, 2, 4, 6, 8, 10, 16, 20)
    lines = [["true mean", *(f"n={n}" for n in numbers), "n for 90 %"]]
    for margin in (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.006):
        chances = (f"{power(margin, n, sigma):.3f}" for n in numbers)
        lines.append([f"3.28 - {margin:.4f}", *chances, str(runs_for(margin, 0.9, sigma))])
    return "\n".join(aligned(lines))


def number(text: str, where: str) -> Fraction:
    """Return a loss exactly.

    Raises:
        UserError: it is no finite number.
    """
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise UserError(
            f"{where}: {text} is no finite loss; a diverged run belongs to its result, which has no mean then"
        ) from None


def read_log(path: Path) -> list[Run]:
    """Return the runs of a log.

    Raises:
        UserError: it cannot be read, or has no validation losses.
    """
    try:
        text = read_bytes(path).decode(errors="replace")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the log of a run") from None
    runs: list[Run] = []
    last = math.inf
    for step, steps, loss in LINE.findall(text):
        if int(step) <= last:
            runs.append(Run({}, int(steps)))
        last = int(step)
        runs[-1].losses[last] = loss
    if not runs:
        raise UserError(f"{path}: no validation losses; a log has lines `step:125/4950 val_loss:5.81381 ...`")
    return runs


def from_logs(paths: Sequence[Path], step: int | None) -> tuple[list[Fraction], int]:
    """Return the losses of all runs of logs at a step (None: the last), and that step.

    Raises:
        UserError: a log is cut off, a run lacks the step or diverged, or the runs have different lengths.
    """
    runs = [(path, run) for path in paths for run in read_log(path)]
    if step is None:
        lengths = {run.steps: path for path, run in runs}
        if len(lengths) > 1:
            ends = ", ".join(f"{path} {steps}" for steps, path in lengths.items())
            raise UserError(f"the runs end at different steps ({ends}); name one that all have with --step")
        (step,) = lengths
    losses = []
    for path, run in runs:
        if step not in run.losses:
            reached = max(run.losses)
            if reached < min(step, run.steps):
                raise UserError(f"{path}: cut off at step {reached} of {run.steps}; finish the run")
            raise UserError(f"{path}: no loss at step {step}; take one of those near the end of the log")
        losses.append(number(run.losses[step], f"{path}, step {step}"))
    return losses, step


def verdict(result: Result, spread: float | None) -> str:
    """Return what the rule says of a result, in lines."""
    needed = runs_needed(result.mean)
    further = "none is enough" if needed is None else str(max(0, needed - result.runs))
    at = "" if result.step is None else f"step {result.step}: "
    lines = [
        f"{at}mean {float(result.mean):.6f}, n = {result.runs}",
        f"margin (3.28 - mean) {float(TARGET - result.mean):.6f}",
        f"(3.28 - mean) sqrt(n) = {statistic(result):.6f}, at least 0.004 is needed",
        f"{'counts' if counts(result) else 'does not count'}",
        f"further runs needed, if the mean stays: {further}",
    ]
    if spread is not None:
        lines.insert(1, f"standard deviation {spread:.6f}; the rule assumes {SIGMA}")
    return "\n".join(lines)


class Row(NamedTuple):
    """A line of published.csv."""

    name: str
    result: Result
    claim: str  # "counts", "does not count", or "": none was made
    statistic: str  # as published, or ""
    optimizer: str
    source: str


def published() -> list[Row]:
    """Return the public results."""
    rows = []
    with PUBLISHED.open(newline="") as file:
        for line in csv.DictReader(file):
            losses = [Fraction(loss) for loss in line["losses"].split()]
            mean, runs = (sum(losses) / len(losses), len(losses)) if losses else (line["mean"], line["runs"])
            result = Result(Fraction(mean), int(runs), int(line["steps"]))
            rest = (line[key] for key in ("claim", "statistic", "optimizer", "source"))
            rows.append(Row(line["name"], result, *rest))
    return rows


def published_table(rows: Sequence[Row]) -> str:
    """Return the rule's verdict on each public result, next to what was claimed."""
    lines = [["result", "steps", "mean", "n", "statistic", "by the rule", "published", "optimizer"]]
    for row in rows:
        says = "counts" if counts(row.result) else "does not count"
        figures = [f"{float(row.result.mean):.6f}", str(row.result.runs), f"{statistic(row.result):.5f}"]
        lines.append([row.name, str(row.result.step), *figures, says, row.claim or "-", row.optimizer])
    return "\n".join(aligned(lines))


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("logs", nargs="*", type=Path, metavar="LOG")
    parser.add_argument(
        "--step", type=int, help="judge at this step, the same in all runs (default: the last)"
    )
    parser.add_argument("--losses", nargs="+", metavar="LOSS", help="final losses, instead of logs")
    parser.add_argument("--mean", help="their mean, with --runs")
    parser.add_argument("--runs", type=int, metavar="N", help="the number of runs behind --mean")
    parser.add_argument("--against", nargs=3, metavar=("STEPS", "MEAN", "N"), help="another result")
    parser.add_argument("--power", action="store_true", help="print the table of probabilities")
    parser.add_argument("--sigma", type=float, default=SIGMA, help=f"for --power (default: {SIGMA})")
    parser.add_argument("--published", action="store_true", help="check the public results")
    return parser.parse_args(arguments)


def result_of(options: argparse.Namespace) -> tuple[Result, float | None]:
    """Return the result that the options give, and the standard deviation of its losses, if known.

    Raises:
        UserError: there is none, or more than one.
    """
    if sum([bool(options.logs), options.losses is not None, options.mean is not None]) != 1:
        raise UserError("give either logs, --losses, or --mean with --runs (or --power, --published)")
    step = options.step
    if options.mean is not None:
        if options.runs is None or options.runs < 1:
            raise UserError(f"--runs {options.runs}: must be the number of runs behind --mean, at least 1")
        return Result(number(options.mean, "--mean"), options.runs, step), None
    if options.losses is not None:
        losses = [number(text, "--losses") for text in options.losses]
    else:
        losses, step = from_logs(options.logs, step)
    spread = statistics.stdev(map(float, losses)) if len(losses) > 1 else None
    return Result(sum(losses, Fraction()) / len(losses), len(losses), step), spread


def compared(result: Result, words: Sequence[str]) -> str:
    """Return the line about a result against another one, given by its steps, mean and runs.

    Raises:
        UserError: the step of the first is not known, or the numbers are none.
    """
    steps, mean, runs = words
    if result.step is None:
        raise UserError("--against: give the step of your losses with --step")
    if not (steps.isdigit() and runs.isdigit() and int(runs)):
        raise UserError(
            f"--against {' '.join(words)}: must be steps, mean and number of runs, as 4950 3.2776 10"
        )
    value = pairwise(result, Result(number(mean, "--against"), int(runs), int(steps)))
    better = "significantly better" if value >= float(THRESHOLD) else "not significantly better"
    return f"against {steps} steps: {value:.6f}, at least 0.004 is needed: {better}"


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was asked for, and return the exit status."""
    options = read_options(arguments)
    if options.power:
        if not options.sigma > 0:
            raise UserError(f"--sigma {options.sigma}: must be positive")
        print(power_table(options.sigma))
        return 0
    if options.published:
        rows = published()
        print(published_table(rows))
        differ = [
            row.name for row in rows if row.claim == ("does not count" if counts(row.result) else "counts")
        ]
        print(f"{len(rows)} results; verdicts that differ: {', '.join(differ) or 'none'}")
        return 1 if differ else 0
    result, spread = result_of(options)
    lines = [verdict(result, spread)]
    if options.against:
        lines.append(compared(result, options.against))
    print("\n".join(lines))
    return 0 if counts(result) else 1


if __name__ == "__main__":
    sys.exit(main())
