"""What the jobs of a multirun print besides what each prints alone."""

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from repro import comparison
from repro.reading import printable_lines

FLAGS = ("-m", "--multirun")


def header(arguments: Sequence[str], number: int) -> str:
    """Return which job begins, as in `2 of 4: optimizer=adan seed=1`: the words that the others lack.

    Args:
        number: of the job, from 0.
    """
    words = [argument for argument in arguments if not argument.startswith("-")]
    jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)[0]
    own = [word for word in jobs[number] if not all(word in job for job in jobs)]
    return f"{number + 1} of {len(jobs)}: {' '.join(own)}"


def compared(folders: Sequence[Path]) -> str:
    """Return a table of finished runs, as scripts/compare.py does."""
    runs = comparison.find(folders)
    return printable_lines(comparison.table(comparison.group(runs), comparison.metric_of(runs)))
