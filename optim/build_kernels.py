"""Compile the CPU kernels: `python optim/build_kernels.py [-o FILE] [FLAG ...]`, with the compiler in CXX.

For setup.py, and for the tests that compile the kernels for other machines or with other flags, which come
last. The compiler is GCC or Clang, for this machine or another (`zig c++ -target ...`).

The library takes raw addresses, of tensors and of the functions of Python and torch that it calls, so the
build needs neither. Nor is it linked against an OpenMP runtime: it must share the one that torch has loaded,
because two would compete for the cores. Without OpenMP it starts threads of its own, see csrc/team.h.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc").glob("*.cpp"))
LIBRARY = ROOT / "optim" / "adan_optim" / "_cpu.abi3.so"
FLAGS = (
    *("-std=c++17", "-O3", "-g0", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),  # the same bits on every machine
    "-Wno-psabi",  # vectors pass between inlined functions alone
)
# -fschedule-insns helps with small states, where a step is bound by arithmetic: the loop bodies are long.
GCC = ("-fschedule-insns",)


def find_compiler() -> list[str]:
    """Return the words of $CXX, or else the first C++ compiler on the path, and those of $ARCHFLAGS.

    The latter name the processor for which a wheel for macOS is built, which may be another than this one.

    Raises:
        FileNotFoundError: there is no compiler.
    """
    found = (name for name in ("c++", "g++", "clang++") if shutil.which(name))
    if not (compiler := os.environ.get("CXX") or next(found, None)):
        raise FileNotFoundError("no C++ compiler: install g++ or clang++, or name one in CXX")
    return shlex.split(compiler) + shlex.split(os.environ.get("ARCHFLAGS", ""))


def flags_for(compiler: Sequence[str]) -> list[str]:
    """Return the flags for a compiler, which depend on its kind and on the system that it compiles for."""
    command = [*compiler, "-dM", "-E", "-x", "c++", "-"]
    macros = subprocess.run(command, check=True, capture_output=True, text=True, input="").stdout.split()
    flags = [*FLAGS, *(() if "_WIN32" in macros else ("-fPIC",))]
    if "__clang__" not in macros:
        flags += GCC
        if "__linux__" in macros:  # where torch comes with GCC's OpenMP
            flags.append("-fopenmp")
    return flags


def build(library: Path = LIBRARY, more: Sequence[str] = ()) -> None:
    """Compile the sources, side by side, and link them.

    Args:
        library: the file to write.
        more: flags for compiling and linking, after `FLAGS`.

    Raises:
        FileNotFoundError: there is no such compiler.
        subprocess.CalledProcessError: it failed; it has said why.
    """
    compiler = find_compiler()
    flags = [*flags_for(compiler), *more]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = {source: f"{folder}/{source.stem}.o" for source in SOURCES}
        commands = [[*compiler, *flags, "-c", str(source), "-o", to] for source, to in objects.items()]
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))
        # Without -fopenmp, so that its functions are those of the runtime that is there.
        subprocess.run([*compiler, "-shared", *more, *objects.values(), "-o", str(library)], check=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    to = LIBRARY
    if words[:1] == ["-o"]:
        to, words = Path(words[1]), words[2:]
    try:
        build(to, words)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
