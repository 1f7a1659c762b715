"""`make test-mutants`: plants faults in optim/ and csrc/, one at a time; tests/optim must notice every one.

Each fault is (what is wrong, file, exact text, text put in its place); those of an optimizer's own rule stand
in its definition (tests/optim/definitions), the others in tests/faults.py. A copy of the sources gets the
fault, the kernels are recompiled if it is in csrc/, and pytest runs on the copy. A text that is not found
exactly once is an error, so that the list keeps up with the sources.

    python tests/mutants.py [-k WORDS] [-j JOBS] [--sample N [--shard K]]

With --sample about N faults, spread over all files: another part of the list for each K.

Exits with 1 if a fault was not noticed, 2 if the list or the sources are at fault.
"""

import argparse
import importlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from multiprocessing import connection
from pathlib import Path

from faults import FAULTS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("optim", "csrc", "setup.py", "pyproject.toml", "tests/optim")
DAILY = "not slow and not exhaustive and not static"  # tests of `make test`
# Imported once; the tests run in forks.
PRELOAD = (
    "torch",
    "numpy",
    "hypothesis",
    "pytest",
    "timm.optim",
    "torch.distributed.checkpoint",
    "torch._dynamo",
)
# Not here: tests against other implementations.
TESTS = (
    "oracle",
    "semantics",
    "tensors",
    "checkpoints",
    "amp",
    "norm",
    "caution",
    "arguments",
    "registry",
    "integration",
    "storage",
    "split",
    "overhead",
    "contract",
    "sums",
    "adam",
    "monitor",
    "blocks",
    "schedule_free",
    "dropins_schedule_free",
)


CUDA = ("ptx", "cuda_sums", "cuda_budgets", "cuda")  # of faults in the CUDA backend, these alone


def compile_kernels(tree: Path) -> None:
    """Optimised less, which takes a fifth of the time and gives the same numbers."""
    done = subprocess.run(
        [sys.executable, tree / "optim/build_kernels.py", "-O1"], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"does not compile: {done.stderr.strip()[:500]}")


def copy_sources(source: Path, tree: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.so" if source == ROOT else "")
    for name in SOURCES:
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, target, ignore=ignore)
        else:
            shutil.copy(source / name, target)


def own_faults() -> dict[str, list[tuple[str, str, str, str]]]:
    """The faults that the definitions list, by optimizer."""
    sys.path.insert(0, str(ROOT / "tests" / "optim"))
    from oracle import DEFINITIONS

    return {
        name: definition.FAULTS for name, definition in DEFINITIONS.items() if hasattr(definition, "FAULTS")
    }


def misplaced(faults: Iterable[tuple[str, str, str, str]], tree: Path) -> list[str]:
    """A line for each fault whose text is not found exactly once in its file."""
    counts = ((name, file, old, (tree / file).read_text().count(old)) for name, file, old, _ in faults)
    return [
        f"{file}, {name!r}: the text is there {count} times: {old!r}"
        for name, file, old, count in counts
        if count != 1
    ]


def stages(first: str) -> list[list[str]]:
    """What pytest is given, one run after the other; first is a test file, or an optimizer's name."""
    names = CUDA if first in CUDA else TESTS
    files = [f"tests/optim/test_{name}.py" for name in names if name != first]
    if first in names:
        return [[f"tests/optim/test_{first}.py"], files]
    own = [[file]] if (file := f"tests/optim/test_{first}.py") and Path(file).exists() else []
    return [["tests/optim/test_oracle.py", "-k", first], *own, [*files, "-k", first], files]


def run(tree: Path, file: str, old: str, new: str, first: str) -> None:
    """In a child process: plants a fault and runs the tests, in stages."""
    output = os.open(tree / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(tree)
    if file:
        (tree / file).write_text((tree / file).read_text().replace(old, new))
    if file.startswith("csrc/") and not file.endswith((".cu", ".cuh")):  # which NVRTC compiles at run time
        compile_kernels(tree)
    os.environ.update(PYTHONPATH=os.pathsep.join([str(tree), str(tree / "optim")]))
    sys.path[:0] = [str(tree), str(tree / "optim")]
    import pytest

    import adan_optim

    if Path(adan_optim.__file__) != tree / "optim" / "adan_optim" / "__init__.py":
        sys.exit(f"imported {adan_optim.__file__}")
    options = ["-x", "-q", "-p", "no:cacheprovider", "--tb=line", "-rf", "--timeout=120", "-m", DAILY]
    options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]  # it is, on purpose
    for stage in stages(first):
        if status := pytest.main([*options, *stage]):
            sys.exit(int(status))


def judge(exit_code: int, output: str) -> tuple[str, str]:
    """What became of a fault ("killed", "SURVIVED" or "BROKEN"), and the test or the reason."""
    if failed := re.search(r"^FAILED tests/optim/(\S.*?)(?: - .*)?$", output, re.MULTILINE):
        return "killed", failed[1]
    if exit_code < 0:
        return "killed", f"crashed with signal {-exit_code}"
    if "Timeout" in output:
        return "killed", "a test did not end"
    return ("BROKEN", f"status {exit_code}: {output.strip()[-300:]!r}") if exit_code else ("SURVIVED", "")


class Run:
    """One copy of the sources with a fault, or without, and the process that runs the tests on it."""

    def __init__(self, clean: Path, fault: tuple[str, str, str, str], first: str) -> None:
        self.name, self.file, old, new = fault
        self.start, self.folder = time.monotonic(), tempfile.TemporaryDirectory(prefix="mutant-")
        self.tree = Path(self.folder.name).resolve()
        copy_sources(clean, self.tree)
        arguments = (self.tree, self.file, old, new, first)
        self.process = multiprocessing.get_context("fork").Process(target=run, args=arguments)
        self.process.start()

    def finish(self) -> str:
        """Prints the line of the table and returns the outcome."""
        self.process.join()
        outcome, detail = judge(self.process.exitcode, (self.tree / "output").read_text(errors="replace"))
        seconds = time.monotonic() - self.start
        self.folder.cleanup()
        shown = "passed" if not self.file and outcome == "SURVIVED" else outcome
        print(f"{shown:9} {seconds:5.1f} s  {self.file:16} {self.name:48} {detail}", flush=True)
        return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "-k", metavar="WORDS", default="", help="only faults with these words in optimizer, file or name"
    )
    parser.add_argument("-j", metavar="JOBS", type=int, default=2, help="faults at a time (default 2)")
    parser.add_argument("--sample", metavar="N", type=int, help="try about N faults, spread over the list")
    parser.add_argument("--shard", metavar="K", type=int, default=0, help="which of such samples (default 0)")
    args = parser.parse_args()
    for module in PRELOAD:
        importlib.import_module(module)
    todo = [(fault, first) for first, faults in {**FAULTS, **own_faults()}.items() for fault in faults]
    todo = [(fault, first) for fault, first in todo if args.k in f"{first} {fault[1]} {fault[0]}"]
    whole = len(todo)
    if args.sample is not None and (parts := -(-whole // args.sample)) > 1:
        todo = todo[args.shard % parts :: parts]
        print(f"{len(todo)} of {whole} faults: sample {args.shard % parts} of {parts}")
    outcomes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        clean = Path(folder).resolve()
        copy_sources(ROOT, clean)
        if lost := misplaced([fault for fault, _ in todo], clean):  # before anything slow
            print("\n".join(lost))
            return 2
        compile_kernels(clean)
        unchanged = ("(no fault)", "", "", "")
        queue, running = [(unchanged, "oracle"), *todo], []
        while queue or running:
            while queue and len(running) < args.j:
                fault, first = queue.pop(0)
                running.append(Run(clean, fault, first))
            connection.wait([one.process.sentinel for one in running])
            for one in [one for one in running if not one.process.is_alive()]:
                running.remove(one)
                outcome = one.finish()
                if one.file:
                    outcomes.append(outcome)
                elif outcome != "SURVIVED":
                    print("the tests do not pass without a fault")
                    outcomes.append("BROKEN")
    print(f"{outcomes.count('killed')} of {len(todo)} faults were noticed")
    return 2 if "BROKEN" in outcomes else int("SURVIVED" in outcomes)


if __name__ == "__main__":
    sys.exit(main())
