"""Replays a released log as if it were our run: `python benchmarks/tracking_demo.py ROW [--fault NAME]`.

Prints what a run of that row would say of itself while it trains, at every measurement, and at the end.
With a fault (of benchmarks/tracking_faults.py), what it would say where that goes wrong.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.tracking_faults import FAULTS, Case
from repro.ledger import rows, tracking
from repro.logs.files import read_log
from repro.train.cli import command_line, exit_status
from repro.train.summary import metrics


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the replay and return the exit status."""
    parser = command_line(__doc__)
    parser.add_argument("row", metavar="ROW", help="e.g. imagenet/vit_s_150_i")
    parser.add_argument("--fault", choices=[fault.name for fault in FAULTS], metavar="NAME")
    options = parser.parse_args(arguments)
    row = rows.load(options.row).row
    log = read_log(row)
    case = Case(row, log, tracking.curves(row, log))
    tracker = tracking.Tracker(row, {})
    last: dict[str, Any] = {}
    for record, measured in records(case, options.fault):
        record |= tracker.compare(record, measured)
        place = f"{tracker.position} {record[tracker.position]:g}"
        print("  ".join([place, *metrics(record), str(tracker)]))
        last |= record
    summary = tracker.summarise(last, None)
    assert summary is not None
    print("\n".join(tracking.describe(summary)))
    return 0


def records(case: Case, fault: str | None) -> Iterator[tuple[dict[str, Any], bool]]:
    """A released log as records of ours, in order, each with whether it is one of a measurement."""
    errors = {key: curve.errors for key, curve in case.curves.items()}
    for each in FAULTS:
        if each.name == fault:
            errors = each.disturb(case, errors)
    found: dict[tuple[float, bool], dict[str, Any]] = {}
    for position, key, index in case.events:
        curve = case.curves[key]
        record = found.setdefault((position, curve.record != "train"), {case.log.position: position})
        record[key] = curve.error(float(errors[key][index]))
    for (_, measured), record in sorted(found.items(), key=lambda item: item[0]):
        yield record, measured


if __name__ == "__main__":
    sys.exit(main())
