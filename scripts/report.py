"""Write the report: `python scripts/report.py [--out PAGE.html] [RUNS...]`.

One self-contained HTML page: the ledger with its verdicts, released curves beside own runs, times of a step.
RUNS are run folders or folders of them; without any, runs/ and results/ are looked through.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # last, so that an installed optim comes first

from repro import page
from repro.cli import exit_status
from repro.ledger import ROOT


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUNS", default=[ROOT / "results", Path("runs")]
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="PAGE", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    print(page.write(options.out, options.runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
