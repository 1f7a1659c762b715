"""The entry point of the images: what it becomes, and what it says where it cannot."""

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from repro import environment

ROOT = Path(__file__).resolve().parents[2]
ROW = "imagenet/vit_s_150_i"


@pytest.fixture
def entrypoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module with test folders as /results and /data; it returns what it would execute."""
    spec = importlib.util.spec_from_file_location("entrypoint", ROOT / "docker/entrypoint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.RESULTS, module.DATA = tmp_path / "results", tmp_path / "data"
    module.RESULTS.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "execvp", lambda program, words: (Path.cwd(), *words))
    return module


def script(name: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / f"{name}.py")]


BENCH = [sys.executable, f"{ROOT}/benchmarks/optimizers.py"]
TRAIN = [sys.executable, f"{ROOT}/vision/train.py"]


@pytest.mark.parametrize(
    ("words", "becomes"),
    [
        (["list"], [*script("reproduce"), "--list"]),
        (["list", "glue"], [*script("reproduce"), "--list", "glue"]),
        (["logs", "list"], [*script("logs"), "list"]),
        (
            ["bench", "--device", "cuda"],
            [*BENCH, "--device", "cuda"],
        ),
        (["vision/train.py", "optimizer=adan"], [*TRAIN, "optimizer=adan"]),
        ([ROW, "--scale", "proxy", "seed=1"], [*script("reproduce"), ROW, "--scale", "proxy", "seed=1"]),
        (["memory/vit_b", "--", "--help"], [*script("reproduce"), "memory/vit_b", "--", "--help"]),
        (["bash", "-c", "true"], ["bash", "-c", "true"]),
    ],
)
def test_words_become_commands(entrypoint: ModuleType, words: list[str], becomes: list[str]) -> None:
    assert entrypoint.main(words) == (entrypoint.RESULTS, *becomes)


def test_the_tests_run_where_they_are(entrypoint: ModuleType) -> None:
    folder, *words = entrypoint.main(["test", "-x"])
    assert (folder, words[:3], words[-2:]) == (ROOT, [sys.executable, "-m", "pytest"], ["tests/optim", "-x"])


def test_mounted_data_are_those_of_a_row_that_needs_some(entrypoint: ModuleType) -> None:
    def overrides(*words: str) -> list[str]:
        return [word for word in entrypoint.main([ROW, *words]) if str(word).startswith("data")]

    assert overrides() == []  # nothing is mounted: the recipe says what is missing
    entrypoint.DATA.mkdir()
    root = f"data.root={entrypoint.DATA}"
    assert overrides() == overrides("--processes", "8") == [root]
    assert overrides("data.root=/elsewhere") == ["data.root=/elsewhere"]
    assert overrides("--scale", "proxy") == []  # digits
    assert overrides("--scale", "proxy", "data=cifar10") == [root, "data=cifar10"]
    assert not any("data.root" in str(word) for word in entrypoint.main(["memory/vit_b"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst"], "lst: no command, no row and no program; did you mean list?"),
        (["imagenet/vit_s_150_j"], "did you mean imagenet/vit_s_150_i or imagenet/vit_s_150 or "),
        (["qqqq"], "`list` shows the rows, --help the commands"),
        (["imagenet/_vit_s"], "no row"),
        ([ROW, "sed=1"], "sed"),
    ],
)
def test_unknown_words(
    entrypoint: ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert entrypoint.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_help_needs_nothing(entrypoint: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    entrypoint.RESULTS.rmdir()
    for words in ([], ["--help"]):
        assert entrypoint.main(words) == 0
    assert capsys.readouterr().out.count("docker run [options] IMAGE WORDS") == 2
    assert entrypoint.main(["list"])[0] == Path.cwd()


def test_results_that_cannot_be_written(
    entrypoint: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert entrypoint.main([ROW, "--scale", "proxy"]) == 2
    error = capsys.readouterr().err
    assert "cannot be written by user" in error
    assert "--user $(id -u)" in error
    entrypoint.RESULTS.rmdir()
    assert entrypoint.main(["vision/train.py"]) == 2
    assert "is not there: mount a folder" in capsys.readouterr().err


def test_the_core_image_has_no_recipes(entrypoint: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    entrypoint.RECIPES = ("vision", "elsewhere")
    assert [entrypoint.main([word]) for word in ("list", ROW)] == [2, 2]
    assert capsys.readouterr().err.count("this one has bench and test") == 2
    assert entrypoint.main(["bench"])[0] == entrypoint.RESULTS


def test_a_run_knows_the_commit_of_its_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAN_COMMIT", "0123abcd")
    assert environment.environment()["commit"] != "0123abcd"  # of this checkout
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "repro/environment.py"))  # outside of any
    assert environment.environment()["commit"] == "0123abcd"
    monkeypatch.setenv("PATH", "")  # without git
    assert environment.environment()["commit"] == "0123abcd"
    monkeypatch.setenv("ADAN_COMMIT", "")  # an image that was built without saying
    assert environment.environment()["commit"] is None


@pytest.mark.parametrize("page", ["README.md", "docs/docker.md"])
def test_what_the_docs_run_exists(entrypoint: ModuleType, page: str) -> None:
    """Return the words of each `docker run` after the image's name; target and arguments of each build."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    runs = re.findall(r"^docker run .*? adan:\S+ (.*)$", text, flags=re.MULTILINE)
    assert runs
    for words in runs:
        assert entrypoint.main(words.split())[1] == sys.executable
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    for build in re.findall(r"^docker build (.*)$", text, flags=re.MULTILINE):
        target, arguments = re.findall(r"--target (\w+)", build), re.findall(r"--build-arg (\w+)", build)
        assert f" AS {target[0]}\n" in dockerfile
        assert all(f"ARG {name}=" in dockerfile for name in arguments)
