"""What the images are built from: constraints, Dockerfile, .dockerignore, compose.yaml."""

import fnmatch
import importlib.metadata
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
VERSIONS = {canonicalize_name(name): version for name, _, version in (pin.partition("==") for pin in PINS)}
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "constraints.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_constraints_are_exact_versions_and_nothing_else() -> None:
    assert not [pin for pin in PINS if not re.fullmatch(r"[\w.-]+==[\w.!-]+", pin)]  # no URL, no +local
    assert len(VERSIONS) == len(PINS) > 100
    assert sorted(PINS, key=lambda pin: pin.partition("==")[0].lower()) == PINS


@pytest.mark.parametrize("extra", ["recipes", "slurm", "test", "text-to-3d", "site"])
def test_constraints_satisfy_what_pyproject_asks_for(extra: str) -> None:
    project = PROJECT["project"]
    wanted = [*PROJECT["build-system"]["requires"], *project["dependencies"]]
    for line in [*wanted, *project["optional-dependencies"][extra]]:
        requirement = Requirement(line)
        version = VERSIONS[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), (
            f"{line}, constraints.txt has {version}: make constraints"
        )


def test_constraints_are_complete() -> None:
    """Packages are installed without looking for what they need."""
    here = sys.version_info[:2], sys.platform, platform.machine()
    if here != SCRIPT["RESOLVED"]:
        pytest.skip(f"constraints.txt is complete for {SCRIPT['RESOLVED']}, this is {here}")
    needed: dict[str, str] = {}
    for name in VERSIONS:
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed[canonicalize_name(requirement.name)] = name
    assert len(needed) > 100
    assert {name: by for name, by in needed.items() if name not in VERSIONS} == {}


@pytest.mark.parametrize(("machine", "processes"), [("x86_64", 2), ("riscv64", 1)])
def test_what_is_installed(machine: str, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pinned packages themselves where they were resolved, elsewhere what pip resolves within them."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("sys.version_info", (3, 11, 7))
    commands = []

    def started(command: list[str]) -> Any:
        commands.append(command)
        return SimpleNamespace(wait=lambda: len(commands) - 1)

    monkeypatch.setattr("subprocess.Popen", started)
    assert SCRIPT["main"](["--install"]) == (processes == 2)  # the status of the second
    assert len(commands) == processes
    if processes == 2:
        words = [word for command in commands for word in command[command.index("--no-deps") + 1 :]]
        assert sorted(words) == sorted(PINS)
    else:
        assert "--no-deps" not in commands[0]
        assert {str(ROOT / "constraints.txt"), *PROJECT["project"]["dependencies"]} < {*commands[0]}


def test_the_command_that_writes_them_lists_the_same() -> None:
    command = [sys.executable, str(ROOT / "scripts/constraints.py"), "--requirements"]
    done = subprocess.run([*command, "test"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    project = PROJECT["project"]
    assert {*project["dependencies"], *project["optional-dependencies"]["test"]} <= set(lines)
    done = subprocess.run([*command, "tset"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.startswith("error: tset: no such extra; pyproject.toml has ")) == (
        1,
        True,
    )


def test_makefile_and_images_install_the_constraints() -> None:
    assert "scripts/constraints.py --install" in (ROOT / "Makefile").read_text()
    installs = re.findall(r"pip install ([^&;{}]*)", DOCKERFILE)
    assert len(installs) == 4  # torch of another index, the tests' packages, apex, the recipes'
    assert ["-c constraints.txt" in words or "--no-deps" in words for words in installs] == [True] * 4


def test_the_targets() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    names = [name for _, name in stages]
    assert {"core", "vision", "nlp", "llm"} <= set(names)
    for base, name in stages:  # each stands on one before it, or on what the build arguments name
        assert base in ("${BASE}", "${DEVEL}") or base in names[: names.index(name)]
    assert "HEALTHCHECK" not in DOCKERFILE
    assert DOCKERFILE.count("USER 1000:1000") == DOCKERFILE.count("image.revision") == 2  # core, recipes


def ignored(path: str) -> bool:
    """Return whether .dockerignore excludes a file: the last line that matches it or its folder counts."""
    parts, out = path.split("/"), False
    folders = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        if pattern.startswith("**/"):
            found = any(fnmatch.fnmatch(part, pattern[3:]) for part in parts)
        else:
            found = any(
                fnmatch.fnmatch(folder, pattern) and folder.count("/") == pattern.count("/")
                for folder in folders
            )
        if found:
            out = not line.startswith("!")
    return out


def test_what_is_copied_is_there_and_not_ignored() -> None:
    copies = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, flags=re.MULTILINE)
    sources = [source for copy in copies for source in copy.split()[:-1]]
    assert {"optim", "repro", "vision", "configs", "docker", "constraints.txt"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists()
        assert not ignored(source), source
    left_out = [
        ".git/config",
        ".venv/bin/python",
        "runs/vision/x/metrics.jsonl",
        "optim/adan_optim/_cpu.abi3.so",
    ]
    left_out += [
        "repro/__pycache__/loop.pyc",
        "docs/docker.md",
        "tests/repro/toy.py",
        "results/docker/test.log",
    ]
    assert all(map(ignored, left_out))


def test_compose_starts_two_processes_of_one_run() -> None:
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
    first, second = compose["services"].values()
    words = first["command"].split()
    assert words == second["command"].split()
    assert words[:3] == ["torchrun", f"--nnodes={len(compose['services'])}", "--nproc-per-node=1"]
    assert f"--rdzv-endpoint={first['hostname']}:29500" in words
    assert f"AS {first['build']['target']}" in DOCKERFILE
    built = ROOT / "docker" / first["build"]["context"] / first["build"]["dockerfile"]
    assert built.samefile(ROOT / "docker/Dockerfile")
    assert any(word.removeprefix("/opt/adan/") == "scripts/reproduce.py" for word in words)


def test_the_shell_script_is_sound() -> None:
    script = ROOT / "docker/test.sh"
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
