"""`make test-platforms`: the CPU kernels for other systems and processors, built here and, if possible, run.

    python tests/platforms.py [--only WORDS] [--out results/install]

For each platform of `PLATFORMS` the library is cross-compiled and linked, and so is tests/same_bits.cpp,
which makes steps of every rule on tensors of awkward sizes that are kept in every way. Where an emulator is
installed, it runs them: every line must be that of the kernels for this machine, which is the promise that
all processors give the same bits. Emulation shows nothing about speed, nor about a system's own Python and
torch.

Needs Debian's g++-aarch64-linux-gnu and qemu-user; for Windows and macOS ziglang from PyPI, and to run the
Windows library Debian's wine. What is missing is listed with the reason, and the exit status is 1 if anything
failed, 3 if something was left out.

Writes PATH/platforms.txt, with the hashes, and PATH/platforms.json, from which the table of docs/install.md
is made.
"""

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ZIG = (sys.executable, "-m", "ziglang", "c++")


@dataclass(frozen=True)
class Platform:
    """A system and processor: how to compile for it and, by `emulators`, how to run what was compiled."""

    name: str
    compiler: tuple[str, ...]
    emulators: tuple[tuple[str, ...], ...] = ()
    libraries: tuple[str, ...] = ()  # of the program, not of the kernels
    environment: dict[str, str] = field(default_factory=dict)


QEMU = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu")
OPENMP = ("-Wl,--no-as-needed", "-lgomp", "-ldl")
PLATFORMS = (
    Platform("Linux x86-64", ("g++",), ((),), OPENMP),  # what the others are compared with
    Platform("Linux x86-64, AVX2", ("g++",), ((),), OPENMP, {"ATEN_CPU_CAPABILITY": "avx2"}),
    Platform("Linux x86-64, SSE2", ("g++",), ((),), OPENMP, {"ATEN_CPU_CAPABILITY": "default"}),
    Platform("Linux x86-64, Clang", (*ZIG, "-target", "x86_64-linux-gnu"), ((),), ("-ldl",)),
    Platform(
        "Linux arm64",
        ("aarch64-linux-gnu-g++",),
        ((*QEMU, "cortex-a57"), (*QEMU, "max,sve256=on")),
        OPENMP,
    ),
    Platform(
        "Windows x86-64", (*ZIG, "-target", "x86_64-windows-gnu"), (("wine",),), (), {"WINEDEBUG": "-all"}
    ),
    Platform("Windows arm64", (*ZIG, "-target", "aarch64-windows-gnu")),
    Platform("macOS arm64", (*ZIG, "-target", "aarch64-macos")),
    Platform("macOS x86-64", (*ZIG, "-target", "x86_64-macos")),
)


def missing(words: Sequence[str]) -> str:
    """Return which program of a command is not installed; "" if it can be started."""
    if words and not shutil.which(words[0]):
        return words[0]
    is_zig = tuple(words[:3]) == ZIG[:3]
    return "ziglang" if is_zig and importlib.util.find_spec("ziglang") is None else ""


def run(words: Sequence[str], **environment: str) -> str:
    """Run a command and return what it printed.

    Raises:
        RuntimeError: with its errors, if it failed.
    """
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise RuntimeError(
            f"{shlex.join(words)}: exit status {done.returncode}\n{done.stderr.strip()[-2000:]}"
        )
    return done.stdout


def built(platform: Platform, folder: Path) -> tuple[Path, Path]:
    """Compile the library and the program for a platform."""
    library, program = folder / "kernels.so", folder / "same_bits.exe"
    script = [sys.executable, str(ROOT / "optim" / "build_kernels.py"), "-o", str(library)]
    run(script, CXX=shlex.join(platform.compiler))
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", f"-I{ROOT / 'csrc'}"]
    source = str(ROOT / "tests" / "same_bits.cpp")
    run([*platform.compiler, *flags, source, "-o", str(program), *platform.libraries])
    return library, program


def lines_of(
    platform: Platform, emulator: Sequence[str], library: Path, program: Path, threads: int
) -> list[str]:
    """Run the program: its kernels' instruction set and threads, then a line for each case."""
    words = [*emulator, str(program), str(library), str(threads)]
    return run(words, **platform.environment).replace("\r", "").splitlines()


def tried(platform: Platform, expected: list[str]) -> list[dict[str, str]]:
    """Build and run the kernels for a platform; fill `expected` if it is empty.

    Returns:
        A row for each way in which they were run, or one if they were only built.
    """
    rows: list[dict[str, str]] = []

    def add(how: str, path: str, seen: str) -> None:
        rows.append(dict(platform=platform.name, path=path, how=how, seen=seen))

    if lacks := missing(platform.compiler):
        add("not tried", "", f"{lacks} is not installed")
        return rows
    with tempfile.TemporaryDirectory() as folder:
        try:
            library, program = built(platform, Path(folder))
            for emulator in platform.emulators:
                if lacks := missing(emulator):
                    add("compiled and linked", "", f"{lacks} is not installed")
                    continue
                for threads in (1, 2):
                    kernels, kind, *lines = lines_of(platform, emulator, library, program, threads)
                    expected[:] = expected or lines
                    same = sum(map(str.__eq__, lines, expected))
                    how = f"emulated by {Path(emulator[0]).name}" if emulator else "run"
                    path = f"fused ({kernels}, {kind}, {threads} thread{'s' * (threads > 1)})"
                    failed = "" if lines == expected else "FAILED: "
                    add(how, path, f"{failed}{same} of {len(expected)} cases have the same bits")
            if not platform.emulators:
                add("compiled and linked", "", "")
        except RuntimeError as error:
            add("FAILED", "", str(error))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all platforms and print a line for each; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", metavar="WORDS", help="platforms with these words in their names"
    )
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="folder for the results; none are written without"
    )
    options = parser.parse_args(arguments)
    expected: list[str] = []
    rows = []
    for platform in PLATFORMS:
        if platform is PLATFORMS[0] or options.only.lower() in platform.name.lower():
            for row in tried(platform, expected):
                print("  ".join(filter(None, row.values())), flush=True)
                rows.append(row)
    if options.out:
        command = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
        rows = [row | {"commit": commit} for row in rows]
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "platforms.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.out / "platforms.txt").write_text(
            "\n".join(["# make test-platforms: hashes of what the kernels wrote, by case", *expected]) + "\n"
        )
    if any("FAILED" in row["how"] + row["seen"] for row in rows):
        return 1
    return 3 if any("not installed" in row["seen"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
