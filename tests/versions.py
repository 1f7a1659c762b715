"""`make test-torch`: the wheel and the optimizer suite in clean environments of several Pythons and torches.

    python tests/versions.py [--torch 2.4 2.11] [--out results/install]

For each pair of `PAIRS` whose Python is found (python3.N on the path, or pyenv's), an environment is made in
.venv-torch/, with that torch and what the tests need; then dist/*.whl is installed as a user installs it, the
fused path must be there, and tests/optim must pass against the installed package, not the checkout. The wheel
is that of `make dist`.

Writes PATH/versions.json, a row for each pair that was tried; other rows stay. Exits with 1 if a pair failed,
3 if one was left out because its Python was not found.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAIRS = (("3.10", "2.4"), ("3.12", "2.6"), ("3.13", "2.8"), ("3.10", "2.11"), ("3.12", "2.14"))
# Names alone: each Python has its own newest versions. The last transformers for torch 2.4.
NEEDED = (
    *("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "numpy", "matplotlib", "pandas"),
    *("hydra-core", "omegaconf", "pyyaml", "tqdm", "timm", "transformers==4.46.3", "safetensors"),
    *("adan-pytorch", "pytorch_optimizer", "torch-optimi"),
)
USE = """
import warnings; warnings.simplefilter("error")
import sys, torch, adan_optim
from adan import Adan
assert adan_optim.__file__.startswith(sys.prefix), adan_optim.__file__
p = torch.nn.Parameter(torch.ones(3)); p.grad = torch.ones(3)
optimizer = Adan([p], lr=0.5); optimizer.step()
assert p.tolist() == [0.5, 0.5, 0.5], p
print(optimizer.path)
"""
# Of torch's own code.
IGNORED = (
    "ignore:Sparse invariant checks",
    "ignore:You are using .torch.load:FutureWarning",
    "ignore:In future:DeprecationWarning",
    "ignore:Warning",
    "ignore:Converting a tensor with requires_grad=True to a scalar",  # LBFGS of torch 2.8
    "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning",
)
MARKERS = "not slow and not exhaustive and not static"


def find_python(version: str) -> str | None:
    """Return the path of a Python of this version, e.g. "3.10"; None if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [*sorted(pyenv.glob(f"versions/{version}.*/bin/python")), shutil.which(f"python{version}")]
    for path in filter(None, candidates):
        probe = [str(path), "-c", "import sys, venv; print(*sys.version_info[:2], sep='.')"]
        if subprocess.run(probe, capture_output=True, text=True).stdout.strip() == version:
            return str(path)
    return None


def tried(version: str, torch: str, python: str, wheel: Path, scratch: Path) -> dict[str, str]:
    """Make the environment, if it is not there yet, install the wheel and run the tests; return the row."""
    folder = scratch / f"python{version}-torch{torch}"
    own = str(folder / "bin" / "python")
    pip = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    row = dict(platform="Linux x86-64", python=version, torch=torch, path="", how="run", seen="")
    start = time.monotonic()
    try:
        if not (folder / "installed").exists():
            subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
            subprocess.run([*pip, "--no-compile", f"torch=={torch}.*", *NEEDED], check=True)
            (folder / "installed").touch()
        subprocess.run([*pip, "--force-reinstall", "--no-deps", str(wheel)], check=True)
        found = subprocess.run([own, "-c", USE], check=True, capture_output=True, text=True, cwd=folder)
        row["path"] = found.stdout.strip()
        assert row["path"].startswith("fused"), row["path"]
    except (subprocess.CalledProcessError, AssertionError) as error:
        return row | {"seen": f"FAILED: {getattr(error, 'stderr', None) or error}".strip()[-500:]}
    ignored = [word for warning in IGNORED for word in ("-W", warning)]
    tests = [own, "-m", "pytest", "-q", "-rf", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider"]
    tests += [
        "-o",
        "pythonpath=.",
        "-m",
        MARKERS,
        *ignored,
        "tests/optim",
    ]  # pyproject.toml's has the checkout
    with (folder / "log").open("w") as log:
        status = subprocess.run(tests, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode
    last = (folder / "log").read_text().strip().splitlines()[-1:]
    summary = re.sub(r"^=+ | in [\d.]+s.*", "", "".join(last))
    seen = (
        f"{'FAILED: ' if status else ''}{summary}, in {time.monotonic() - start:.0f} s with the installation"
    )
    return row | {"seen": seen}


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the pairs and print a line for each; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch", nargs="+", metavar="VERSION", help="the pairs of these torches alone")
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="folder for the results; none are written without"
    )
    options = parser.parse_args(arguments)
    wheels = sorted((ROOT / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        sys.exit("error: dist/ has no wheel: make dist")
    file = options.out / "versions.json" if options.out else None
    rows = json.loads(file.read_text()) if file and file.exists() else []
    missing = []
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    for version, torch in PAIRS:
        if options.torch and torch not in options.torch:
            continue
        python = find_python(version)
        if python is None:
            missing.append(version)
            print(f"Python {version}, torch {torch}: there is no Python {version} here", flush=True)
            continue
        row = tried(version, torch, python, wheels[-1], ROOT / ".venv-torch") | {
            "wheel": wheels[-1].name,
            "commit": commit,
        }
        print("  ".join(row.values()), flush=True)
        rows = [old for old in rows if (old["python"], old["torch"]) != (version, torch)] + [row]
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(rows, indent=1) + "\n")
    if any("FAILED" in row["seen"] for row in rows):
        return 1
    return 3 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
