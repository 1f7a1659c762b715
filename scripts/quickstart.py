"""Make the quickstart notebook of examples/quickstart.py, with what its cells print: `make quickstart`.

Examples:
    python scripts/quickstart.py
    python scripts/quickstart.py --out mine.ipynb
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from repro.errors import UserError
from repro.publish import replacing
from repro.train.cli import command_line, exit_status

if TYPE_CHECKING:
    from nbformat import NotebookNode

SOURCE = Path(__file__).resolve().parents[1] / "examples" / "quickstart.py"
NOTEBOOK = SOURCE.with_suffix(".ipynb")


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, default=NOTEBOOK, metavar="NOTEBOOK", help="default: %(default)s")
    return parser.parse_args()


def made() -> "NotebookNode":
    """Return the notebook of the script, not run yet."""
    import jupytext

    notebook = jupytext.read(SOURCE)
    notebook.metadata.pop("jupytext", None)
    for number, cell in enumerate(notebook.cells):  # the same at every run
        cell.id, cell.metadata = str(number), {}
    return notebook


def executed(notebook: "NotebookNode") -> "NotebookNode":
    """Return the notebook after all its cells have run.

    Raises:
        CellExecutionError: one of them failed.
    """
    from nbclient import NotebookClient

    quiet = ["--log-level=ERROR"]  # the kernel warns of its connection, which is within this machine
    client = NotebookClient(notebook, record_timing=False, coalesce_streams=True, extra_arguments=quiet)
    return client.execute(cwd=str(SOURCE.parent))


@exit_status
def main() -> int:
    """Run the notebook, write it, and return the exit status.

    Raises:
        UserError: there is no folder for it.
    """
    out = read_options().out
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    import nbformat

    with replacing(out) as temporary:
        nbformat.write(executed(made()), temporary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
