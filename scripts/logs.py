"""Training logs: those released with Adan and those of people's own runs, in one table.

show FILE...        what a log is and holds; several files are parts of one run
plot FILE...        its curves; a line for each file
export FILE...      its records as CSV or Parquet; several files are parts of one run
list [ROW...]       the released files that the ledger names, and whether they are here
get [ROW...]        bring them here, from the official repository or a local copy
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from repro.errors import UserError
from repro.reading import printable, printable_lines
from repro.train.cli import command_line, exit_status


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command says; return 0, 1 if a file is missing or wrong, or 2 for bad input."""
    options = parser().parse_args(arguments)
    return int(options.run(options))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    main = command_line(__doc__)
    commands = main.add_subparsers(required=True, metavar="COMMAND")

    show_ = commands.add_parser("show", help="what a log is and holds")
    show_.add_argument("--all", action="store_true", help="all faults and oddities, not the first few")
    show_.set_defaults(run=show)
    plot_ = commands.add_parser("plot", help="its curves")
    plot_.add_argument("--out", type=Path, required=True, metavar="PNG")
    plot_.add_argument("--column", action="append", default=[], help="a column to plot, instead of the usual")
    plot_.add_argument("--parts", action="store_true", help="the files are parts of one run: one line")
    plot_.set_defaults(run=plot)
    export_ = commands.add_parser("export", help="its records as a file")
    export_.add_argument("--out", type=Path, required=True, metavar="CSV|PARQUET")
    export_.set_defaults(run=export)
    for command in (show_, plot_, export_):
        command.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a log, or a run's folder")
        command.add_argument(
            "--strict", action="store_true", help="refuse a log with lines that cannot be read"
        )

    list_ = commands.add_parser("list", help="the released files that the ledger names")
    list_.set_defaults(run=list_files)
    get_ = commands.add_parser("get", help="bring the released files here")
    get_.add_argument(
        "--from", dest="source", type=Path, metavar="DIR", help="a local copy, laid out as upstream"
    )
    get_.add_argument(
        "--to", type=Path, metavar="DIR", help="default: $ADAN_RELEASED, else a cache in the home"
    )
    get_.set_defaults(run=get)
    for command in (list_, get_):
        command.add_argument("rows", nargs="*", metavar="ROW", help="of the ledger; default: all")
    return main


def show(options: argparse.Namespace) -> int:
    """Print what a log is."""
    from repro.logs import read
    from repro.logs.present import describe

    print(printable_lines(describe(read(options.files, options.strict), options.all)))
    return 0


def plot(options: argparse.Namespace) -> int:
    """Write a figure."""
    from repro.logs import read
    from repro.logs.present import plot

    parts = [options.files] if options.parts else [[file] for file in options.files]
    logs = {label: read(files, options.strict) for label, files in zip(_labels(parts), parts, strict=True)}
    shown = plot(logs, options.out, options.column)
    print(printable(f"{options.out}: {', '.join(shown)}"))
    return 0


def export(options: argparse.Namespace) -> int:
    """Write the table."""
    from repro.logs import read
    from repro.logs.present import export

    log = read(options.files, options.strict)
    export(log, options.out)
    print(f"{options.out}: {len(log.table)} records, {len(log.faults)} faults left out")
    return 0


def list_files(options: argparse.Namespace) -> int:
    """Print the released files row by row."""
    from repro.logs import files

    here = files.folder()
    states: dict[str, str] = {}
    for row, named in files.of_rows(options.rows).items():
        print(f"{row}" if named else f"{row}: nothing was released in the repository")
        for file in named:
            states[file.path] = states.get(file.path) or files.state(file, here / file.path)
            print(f"  {states[file.path]:10}  {file.kind:8}  {file.path}")
    counts = [f"{list(states.values()).count(s)} {s}" for s in (files.PRESENT, files.MISSING, files.WRONG)]
    print(f"{len(states)} files in {here}: {', '.join(counts)}")
    return int(any(state != files.PRESENT for state in states.values()))


def get(options: argparse.Namespace) -> int:
    """Bring the released files here."""
    from repro.logs import files

    to = options.to or files.folder()
    named = [file for of_row in files.of_rows(options.rows).values() for file in of_row]
    fetched = files.fetch(named, to, options.source)
    for problem in fetched.problems:
        print(problem)
    print(f"{to}: {fetched.summary}")
    return int(bool(fetched.problems))


def _labels(parts: Sequence[Sequence[Path]]) -> list[str]:
    """A name for each run: its first path without the folders that all have in common."""
    paths = [files[0].resolve() for files in parts]
    if len(set(paths)) < len(paths):
        raise UserError("a file is named twice")
    common = os.path.commonpath([path.parent for path in paths])
    return [str(path.relative_to(common)) for path in paths]


if __name__ == "__main__":
    sys.exit(main())
