"""Runs the tiers of the tests one after the other, as far as they fit: `python tests/tiers.py --minutes 60`.

A tier is a target of the Makefile. `tests/times.json` says how many seconds each takes on two quiet cores,
and the tests of one planted fault ("fault"); a slower machine is allowed for by what the tiers before took.
Of the planted faults as many are tried as fit, others from day to day. What is left out is printed.

    python tests/tiers.py --record     no limit, a sample of the faults; writes the times (`make test-times`)

Exits with 1 if a tier failed; after `make test` has failed nothing else is run.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

TIMES = Path(__file__).with_name("times.json")
TIERS = (
    *("test", "test-recipes", "test-optim", "test-sanitize", "test-cuda-static", "test-slow"),
    "test-mutants",
)
FEWEST = 20  # faults: the kernels are compiled first, which fewer are not worth


def command(tier: str, times: dict[str, float], left: float) -> list[str]:
    """What make is asked for: a tier, if it fits into `left` seconds of two quiet cores, else nothing."""
    if tier == "test" or math.isinf(left):
        return [tier]
    if tier != "test-mutants":
        return [tier] if times[tier] <= left else []
    count = int(left / times["fault"])
    return [tier, f"SAMPLE={count}", f"SHARD={int(time.time() // 86400)}"] if count >= FEWEST else []


def make(*targets: str) -> tuple[bool, float]:
    """Whether make succeeded, and its seconds, which are printed."""
    start = time.monotonic()
    done = subprocess.run(["make", *targets], check=False)
    seconds = time.monotonic() - start
    print(f"make {' '.join(targets)}: {seconds:.0f} s", flush=True)
    return done.returncode == 0, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=math.inf, help="leave out what takes longer")
    parser.add_argument("--record", action="store_true", help="write the times that are measured")
    options = parser.parse_args()
    times: dict[str, float] = json.loads(TIMES.read_text())
    installed, passed = make(".venv/.installed")
    if not installed:
        return 1
    failed, left_out = [], []
    measured: dict[str, float] = {}
    for tier in TIERS:
        slowness = max(1.0, sum(measured.values()) / (sum(times[done] for done in measured) or math.inf))
        words = command(tier, times, (60 * options.minutes - passed) / slowness)
        if options.record and tier == "test-mutants":
            words = [tier, f"SAMPLE={FEWEST}"]
        if not words:
            left_out.append(tier)
            continue
        succeeded, seconds = make(*words)
        passed += seconds
        if tier == "test-mutants":
            times["fault"] = round(seconds / FEWEST, 1)
        else:
            measured[tier] = round(seconds)
        if not succeeded:
            failed.append(tier)
            if tier == "test":
                break
    if options.record and not failed:
        TIMES.write_text(json.dumps(times | measured, indent=2) + "\n")
    print(f"left out, for want of time: {', '.join(left_out) or 'nothing'}")
    print(f"failed: {', '.join(failed) or 'nothing'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
