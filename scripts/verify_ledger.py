"""Check the ledger against the released files.

Without ROW, all rows are checked. Nothing is trained; docs/ledger.md explains the checks. The exit status is
1 if a check fails. --out writes verify.json, with all notes, and verify.md to DIR; with ROW, only the entries
of these rows change.

Examples:
    python scripts/verify_ledger.py imagenet/vit_s_150_i
    python scripts/verify_ledger.py --out results/ledger
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from repro.train.cli import command_line


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="<table>/<row>; default: all")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write verify.json and verify.md there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import json
import sys
from collections import Counter
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from repro.environment import environment
from repro.errors import UserError
from repro.ledger.rows import COMMIT, REPOSITORY, names
from repro.results import as_text, bullets, page, table, write
from repro.train.cli import exit_status
from repro.verify import Verdict, verify
from repro.verify.checks import Check

COMPARED = {  # the unit that a check counts
    "files": "files",
    "settings": "keys of settings",
    "lr": "learning rates",
    "epochs": "epochs and positions of records",
    "validation": "positions of validations",
    "parameters": "numbers of parameters",
    "figure": "best and final values",
}


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and the summary, write them, and return the exit status."""
    options = read_options(arguments)
    rows = tqdm(options.rows or names(), unit="row", leave=False, disable=None)
    verdicts = [verify(name) for name in rows]
    parts = [rows_of(verdicts), bullets(notes(verdicts)), "\n".join(summary(verdicts))]
    print(as_text("\n\n".join(filter(None, parts))))
    if options.out is not None:
        publish(options.out, verdicts, options.rows)
    return int(any(verdict.failed for verdict in verdicts))


def rows_of(verdicts: Sequence[Verdict]) -> str:
    """Return a Markdown table with a line for each row of the ledger."""
    return table(
        ["row", *COMPARED, "verdict"],
        ([each.name, *(cell(each.checks[name]) for name in COMPARED), each.says] for each in verdicts),
    )


def cell(check: Check) -> str:
    """Return a check's cell of the table."""
    return {True: "", False: "DIFFERS: ", None: "- "}[check.passed] + check.says


def notes(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the notes below the table: differences, accepted departures, missing files."""
    return [
        f"{verdict.name}, {name}: {note}"
        for verdict in verdicts
        for name, check in verdict.checks.items()
        for note in check.notes
        if check.passed is False or name == "files" or "departs" in note
    ]


def summary(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the totals, one line each."""
    kinds = Counter(verdict.says.split(":")[0] for verdict in verdicts)
    checks = [(name, check) for verdict in verdicts for name, check in verdict.checks.items()]
    results = Counter(check.passed for _, check in checks)
    compared: Counter[str] = Counter()
    for name, check in checks:
        compared[name] += check.compared
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return [
        f"{len(verdicts)} row{'s' * (len(verdicts) != 1)}: {counts}.",
        f"{len(checks)} checks: {results[True]} passed, {results[False]} failed, "
        f"{results[None]} had nothing to check against.",
        "Compared: " + ", ".join(f"{compared[name]:,} {what}" for name, what in COMPARED.items()) + ".",
    ]


def publish(folder: Path, verdicts: Sequence[Verdict], rows: Sequence[str]) -> None:
    """Write verify.json and verify.md.

    Args:
        rows: the rows of the command line; empty means all. If there are some, verify.json keeps its entries
            for other rows, and the new entries record their own commit.

    Raises:
        UserError: the folder cannot be written to, or its verify.json cannot be read.
    """
    here = environment()
    made = {"command": "python scripts/verify_ledger.py", "commit": here["commit"], "date": here["time"]}
    entries = {
        verdict.name: {"verdict": verdict.says, "failed": verdict.failed, **asdict(verdict)}
        for verdict in verdicts
    }
    path = folder / "verify.json"
    if rows and path.exists():
        before = read(path)
        made, alone = {key: before[key] for key in made}, {"commit": here["commit"], "date": here["time"]}
        entries = before["rows"] | {name: {**entry, "alone": alone} for name, entry in entries.items()}
        entries = {name: entries[name] for name in names() if name in entries}
    elif rows:
        made["command"] = " ".join([made["command"], *rows])
    verdicts = [restore(entry) for entry in entries.values()]
    apart = [
        f"{name}: checked by itself at commit {entry['alone']['commit']}, {entry['alone']['date']}"
        for name, entry in entries.items()
        if "alone" in entry
    ]
    text = page(
        "The ledger against what was released",
        f"`{made['command']} --out DIR` at commit {made['commit']}, {made['date']}, against the files of "
        f"{REPOSITORY} at {COMMIT[:7]}. A `-` has nothing to check against; a `*` passed with overrides that "
        "the row names. What each check is: docs/ledger.md.",
        "\n".join(summary(verdicts)),
        rows_of(verdicts),
        bullets([*notes(verdicts), *apart]),
    )
    write({**made, "summary": summary(verdicts), "rows": entries}, text, path)


def read(path: Path) -> dict[str, Any]:
    """Return the content of a verify.json.

    Raises:
        UserError: it is damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        for entry in content["rows"].values():
            restore(entry)
        return {key: content[key] for key in ("command", "commit", "date", "rows")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); check all rows, without naming any"
        ) from error


def restore(entry: dict[str, Any]) -> Verdict:
    """Return the verdict that an entry of verify.json holds."""
    checks = {
        name: Check(**{**check, "notes": tuple(check["notes"])}) for name, check in entry["checks"].items()
    }
    return Verdict(entry["name"], checks, entry["missing"], entry["released"])


if __name__ == "__main__":
    sys.exit(main())
