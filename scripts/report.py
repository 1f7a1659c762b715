"""Write the report, a self-contained HTML page.

It has the ledger with its verdicts, released curves and own runs, times of a step.
RUNS are run folders or folders of them; the default is runs/ and results/. --pictures FOLDER also writes
pictures of the page there, which needs chromium.

Examples:
    python scripts/report.py
    python scripts/report.py --out mine.html runs
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.comparison.records import RECORDS
from repro.ledger.rows import ROOT
from repro.train.cli import command_line


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUNS", default=[ROOT / "results", Path("runs")]
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="PAGE", help="default: %(default)s"
    )
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="write docs/report.md's pictures there"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import sys

from benchmarks.comparison.records import load
from benchmarks.comparison.report import section
from repro.ledger import html
from repro.train.cli import exit_status


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and return the exit status."""
    options = read_options(arguments)
    print(html.write(options.out, options.runs, section(load(RECORDS))))
    if options.pictures is not None:
        from repro.ledger import pictures  # needs Pillow, the page does not

        print(f"{options.pictures}: {', '.join(pictures.take(options.out, options.pictures))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
