"""Say why a run went wrong.

RUN is the folder of a run, or a log of another program: one file, or its parts in order. A file of
adan_optim.Monitor can be given alone or with a log. The likeliest cause is printed with its evidence and its
cure, then others, then what the records do not tell. docs/doctor.md lists the causes.

The exit status is 0 if nothing likely was found, 1 if a cause is likely or the run went wrong, and 2 for bad
input.

Examples:
    python scripts/doctor.py results/llm/proxy-moe_adan
    python scripts/doctor.py results/llm/trial-gpt2_adan-16e-3
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from repro.train.cli import command_line, exit_status


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("run", nargs="+", type=Path, metavar="RUN")
    return parser.parse_args(arguments)


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the diagnosis and return the exit status."""
    options = read_options(arguments)
    from repro.doctor.diagnosis import describe, diagnose
    from repro.doctor.record import read_record
    from repro.reading import printable_lines

    diagnosis = diagnose(read_record(options.run))
    print(printable_lines(describe(diagnosis)))
    return int(diagnosis.likeliest is not None or diagnosis.went_wrong)


if __name__ == "__main__":
    sys.exit(main())
