"""Write constraints.txt: the exact versions of all packages that the recipes and tests depend on.

    python scripts/constraints.py             keep the present versions, add new requirements
    python scripts/constraints.py --upgrade   take the newest versions that pyproject.toml allows
    python scripts/constraints.py --requirements [EXTRA ...]   print its requirements, for `pip install -r`
    python scripts/constraints.py --install   install them into the Python that runs this

`make test` and the images of docker/ install these versions. Writing them installs nothing.

Examples:
    python scripts/constraints.py
    python scripts/constraints.py --requirements recipes
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "constraints.txt"
EXTRAS = ("recipes", "text-to-3d", "test", "site")
RESOLVED = ((3, 11), "linux", "x86_64")  # where the versions are all that is needed
HEAD = """\
# The versions that the tests are run with, of every package that they and the recipes need, for Python 3.11
# on Linux (x86-64). Written by `make constraints`; installed by `make test` and in the images of docker/.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    # not repro's, because this runs before anything is installed
    about, _, examples = str(__doc__).partition("\nExamples:\n")
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, epilog=f"examples:\n{examples}", formatter_class=form)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    parser.add_argument("--requirements", nargs="*", metavar="EXTRA", help="print these, write nothing")
    parser.add_argument("--install", action="store_true", help="install them, write nothing")
    options = parser.parse_args(arguments)
    if options.install:
        return install()
    if options.requirements is not None:
        print(*requirements(options.requirements), sep="\n")
        return 0
    keep = [] if options.upgrade or not FILE.exists() else ["-c", str(FILE)]
    versions = resolve(requirements(EXTRAS), keep)
    FILE.write_text(HEAD + "".join(f"{name}=={version}\n" for name, version in versions.items()))
    print(f"{FILE.name}: {len(versions)} packages")
    return 0


def install() -> int:
    """Install everything into this Python, and return the exit status.

    Where the versions were resolved, they are all that is needed, and nothing is resolved again: two
    processes take half of them each. Elsewhere (another system, a newer Python) they limit what pip chooses.
    """
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"]
    pins = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]
    if (sys.version_info[:2], sys.platform, platform.machine()) == RESOLVED:
        commands = [[*pip, "--no-deps", *half] for half in (pins[::2], pins[1::2])]
    else:
        commands = [[*pip, "-c", str(FILE), *requirements(EXTRAS)]]
    processes = [subprocess.Popen(command) for command in commands]
    statuses = [process.wait() for process in processes]
    return int(any(statuses))


def requirements(extras: Sequence[str]) -> list[str]:
    """Return the requirements of pyproject.toml: to build, to run `optim`, and of these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    optional = project["project"]["optional-dependencies"]
    unknown = [extra for extra in extras if extra not in optional]
    if unknown:
        sys.exit(f"error: {unknown[0]}: no such extra; pyproject.toml has {', '.join(optional)}")
    chosen = [requirement for extra in extras for requirement in optional[extra]]
    return sorted({*project["build-system"]["requires"], *project["project"]["dependencies"], *chosen})


def resolve(wanted: Sequence[str], keep: Sequence[str]) -> dict[str, str]:
    """Return the versions, by name, that pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", str(report), *keep, *wanted], check=True)
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {item["name"]: item["version"] for item in sorted(found, key=lambda item: item["name"].lower())}


if __name__ == "__main__":
    sys.exit(main())
