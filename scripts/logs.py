"""Read training logs: those released with Adan, and those of your own runs.

show FILE...        describe a log; several files are parts of one run
plot FILE...        draw its curves; one line per file
export FILE...      write its records as CSV or Parquet; several files are parts of one run
list [ROW...]       list the released files that the ledger names, and whether they are here
get [ROW...]        download them from the official repository, or copy them from a local copy

Examples:
    python scripts/logs.py show results/llm/proxy-moe_adan
    python scripts/logs.py list imagenet/vit_s_150_i
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from repro.errors import UserError
from repro.reading import printable, printable_lines
from repro.train.cli import command_line, exit_status


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 if a file is missing or wrong, or 2 for bad input."""
    options = parser().parse_args(arguments)
    return int(options.run(options))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    main = command_line(__doc__)
    commands = main.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, help: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help)
        made.set_defaults(run=run)
        return made

    show_ = command("show", "describe a log", show)
    show_.add_argument("--all", action="store_true", help="all faults and oddities, not only the first few")
    plot_ = command("plot", "draw its curves", plot)
    plot_.add_argument("--out", type=Path, required=True, metavar="PNG", help="an SVG comes beside it")
    plot_.add_argument("--column", action="append", default=[], help="plot this column, not the usual ones")
    plot_.add_argument("--parts", action="store_true", help="the files are parts of one run: one line")
    export_ = command("export", "write its records to a file", export)
    export_.add_argument("--out", type=Path, required=True, metavar="CSV|PARQUET")
    for each in (show_, plot_, export_):
        each.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a log, or a run's folder")
        each.add_argument("--strict", action="store_true", help="refuse a log with unreadable lines")

    list_ = command("list", "list the released files that the ledger names", list_files)
    get_ = command("get", "bring the released files here", get)
    get_.add_argument("--from", dest="source", type=Path, metavar="DIR", help="a copy of the repository")
    get_.add_argument("--to", type=Path, metavar="DIR", help="default: $ADAN_RELEASED, else ~/.cache")
    for each in (list_, get_):
        each.add_argument("rows", nargs="*", metavar="ROW", help="of the ledger; default: all")
    return main


def show(options: argparse.Namespace) -> int:
    """Describe a log."""
    from repro.logs import read
    from repro.logs.present import describe

    print(printable_lines(describe(read(options.files, options.strict), options.all)))
    return 0


def plot(options: argparse.Namespace) -> int:
    """Draw the curves of one or more logs."""
    from repro.logs import read
    from repro.logs.present import plot

    parts = [options.files] if options.parts else [[file] for file in options.files]
    logs = {label: read(files, options.strict) for label, files in zip(_labels(parts), parts, strict=True)}
    shown = plot(logs, options.out, options.column)
    print(printable(f"{options.out}: {', '.join(shown)}"))
    return 0


def export(options: argparse.Namespace) -> int:
    """Write the records of a log."""
    from repro.logs import read
    from repro.logs.present import export

    log = read(options.files, options.strict)
    export(log, options.out)
    print(f"{options.out}: {len(log.table)} records, {len(log.faults)} faults left out")
    return 0


def list_files(options: argparse.Namespace) -> int:
    """Print the released files, row by row."""
    from repro.logs import files

    here = files.folder()
    states: dict[str, str] = {}
    for row, named in files.of_rows(options.rows).items():
        print(row if named else f"{row}: nothing was released in the repository")
        for file in named:
            states[file.path] = states.get(file.path) or files.state(file, here / file.path)
            print(f"  {states[file.path]:10}  {file.kind:8}  {file.path}")
    counts = [f"{list(states.values()).count(s)} {s}" for s in (files.PRESENT, files.MISSING, files.WRONG)]
    print(f"{len(states)} files in {here}: {', '.join(counts)}")
    return int(any(state != files.PRESENT for state in states.values()))


def get(options: argparse.Namespace) -> int:
    """Download or copy the released files."""
    from repro.logs import files

    to = options.to or files.folder()
    named = [file for of_row in files.of_rows(options.rows).values() for file in of_row]
    fetched = files.fetch(named, to, options.source)
    for problem in fetched.problems:
        print(problem)
    print(f"{to}: {fetched.summary}")
    return int(bool(fetched.problems))


def _labels(parts: Sequence[Sequence[Path]]) -> list[str]:
    """Return a name for each run: its first path without the folders that all have in common."""
    paths = [files[0].resolve() for files in parts]
    if len(set(paths)) < len(paths):
        raise UserError("a file is named twice")
    common = os.path.commonpath([path.parent for path in paths])
    return [str(path.relative_to(common)) for path in paths]


if __name__ == "__main__":
    sys.exit(main())
