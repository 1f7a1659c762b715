"""What a container does: `docker run [options] IMAGE WORDS...`, where WORDS are one of

    list [PATTERN]                           list the rows: published, cost, own result
    TABLE/ROW [--scale proxy] [key=value]    run a row; the same command continues it (--dry-run: show it)
    logs WORDS...                            the released logs: show, plot, export, list, get
    bench WORDS...                           time the optimizers' steps
    test WORDS...                            the tests of the optimizers
    FOLDER/SCRIPT.py WORDS...                a script of the repository
    PROGRAM WORDS...                         any other installed program: python, torchrun, bash

Runs go to /results/runs: mount a folder there, and add `--user $(id -u):$(id -g)` to own them. If a row needs
data.root and it is not given, data mounted at /data are used. docs/docker.md has more.
"""

import difflib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from repro.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DATA = Path("/results"), Path("/data")
RECIPES = ("vision", "nlp", "llm")  # not in the core image

DAILY = "not slow and not exhaustive"
COMMANDS = {
    "list": ["scripts/reproduce.py", "--list"],
    "logs": ["scripts/logs.py"],
    "bench": ["benchmarks/optimizers.py"],
    # the cache would be written next to the sources
    "test": ["-m", "pytest", "-p", "no:cacheprovider", "-n", "auto", "-m", DAILY, "tests/optim"],
}


def main(arguments: Sequence[str]) -> int:
    """Become the command that `arguments` name; return an exit status if there is none."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0
    try:
        folder, words = resolve(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    os.chdir(folder)
    return os.execvp(words[0], words)


def resolve(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the working folder and the words of the program to run.

    Raises:
        UserError: the name is unknown, or not in this image, or runs cannot be written.
    """
    first, *rest = arguments
    tables = (ROOT / "configs/paper").glob("*/[!_]*.yaml")
    rows = [f"{path.parent.name}/{path.stem}" for path in sorted(tables)]
    if first in COMMANDS:
        check_recipes(first)
        script, *options = COMMANDS[first]
        if script == "-m":
            return ROOT, [sys.executable, script, *options, *rest]
        return here(), [sys.executable, str(ROOT / script), *options, *rest]
    if first.endswith(".py") and (ROOT / first).is_file():
        check_results()
        return RESULTS, [sys.executable, str(ROOT / first), *rest]
    if first in rows:
        check_recipes(first)
        check_results()
        return RESULTS, [sys.executable, str(ROOT / "scripts/reproduce.py"), *row(arguments)]
    if shutil.which(first):
        return here(), list(arguments)
    near = difflib.get_close_matches(first, [*COMMANDS, *rows], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`list` shows the rows, --help the commands"
    raise UserError(f"{first}: no command, no row and no program; {hint}")


def row(arguments: Sequence[str]) -> list[str]:
    """Return the words for scripts/reproduce.py, with the mounted data if the row needs data.

    Raises:
        UserError: the row has no proxy, or an override does not fit.
    """
    from repro.ledger import describe
    from scripts import reproduce

    words = list(arguments)
    end = words.index("--") if "--" in words else len(words)
    options = reproduce.parser().parse_intermixed_args(words[:end])
    recipe, _ = reproduce.prepare(options.row, options.scale, options.overrides)
    if DATA.is_dir() and describe.needs_root(recipe.config.get("data") or {}):
        words.insert(1, f"data.root={DATA}")
    return words


def check_recipes(word: str) -> None:
    """Raise UserError if the image lacks a command."""
    if word not in ("bench", "test") and not all((ROOT / folder).is_dir() for folder in RECIPES):
        raise UserError(f"{word}: is in the images {', '.join(RECIPES)}; this one has bench and test")


def check_results() -> None:
    """Raise UserError if runs cannot be written."""
    if not os.access(RESULTS, os.W_OK | os.X_OK):
        raise UserError(
            f"{RESULTS} cannot be written by user {os.getuid()}, and is owned by {RESULTS.stat().st_uid}: "
            "start the container with --user $(id -u):$(id -g), or chown the folder that is mounted there"
            if RESULTS.is_dir()
            else f"{RESULTS} is not there: mount a folder for the runs, as in -v $PWD/results:{RESULTS}"
        )


def here() -> Path:
    """Return the working folder of other commands: that of the results, if it exists."""
    return RESULTS if RESULTS.is_dir() else Path.cwd()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
