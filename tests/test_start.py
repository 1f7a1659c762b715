"""Commands answer at once: --help and mistakes need none of the packages that take seconds to import."""

import argparse
import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.commands import commands, recipes, started
from repro.ledger import rows
from repro.ledger.rows import ROOT

HEAVY = {
    *("torch", "torchvision", "timm", "transformers", "accelerate", "peft", "datasets", "tokenizers"),
    *("numpy", "scipy", "pandas", "pyarrow", "sklearn", "matplotlib", "PIL", "tensorboard", "wandb"),
    *("diffusers", "imageio", "skimage", "trimesh"),
}


def run(command: str, *arguments: str) -> tuple[int, str, str, set[str]]:
    """Exit status, output, errors, and imported packages of a command."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *started(command), *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/optim"},
    )
    lines = done.stderr.splitlines()
    times = [line for line in lines if line.startswith("import time:")]
    errors = "\n".join(line for line in lines if not line.startswith("import time:"))
    return done.returncode, done.stdout, errors, {line.split("|")[-1].strip() for line in times}


def test_there_are_commands() -> None:
    found = set(commands())
    assert {"optim/adan_optim/__main__.py", "scripts/report.py", "benchmarks/comparison/__main__.py"} < found
    assert {path.name for path in (ROOT / "scripts").glob("*.py")} == {
        Path(command).name for command in found if command.startswith("scripts/")
    }
    assert {"vision/train.py", "nlp/finetune_glue.py", "llm/remax.py"} < set(recipes()) < found


@pytest.mark.parametrize("command", commands())
def test_help(command: str) -> None:
    status, out, errors, imported = run(command, "--help")
    assert (status, errors) == (0, "")
    assert len(out.splitlines()) > 4
    assert not sorted(imported & HEAVY)
    if command in TYPED:
        help_frame(command, out)


def examples(command: str) -> list[list[str]]:
    """The words of the examples at the end of a command's docstring."""
    doc = ast.get_docstring(ast.parse((ROOT / command).read_text())) or ""
    return [shlex.split(line) for line in doc.partition("\n\nExamples:\n")[2].splitlines()]


TYPED = [command for command in commands() if command.startswith(("scripts/", "benchmarks/"))]


def help_frame(command: str, out: str) -> None:
    """The help begins with what the command does, and ends with two examples."""
    first, *_ = (ast.get_docstring(ast.parse((ROOT / command).read_text())) or "").splitlines()
    if command == "scripts/constraints.py":  # argparse's own order, as nothing else is installed yet
        out = out.partition("\n\n")[2]
    assert out.splitlines()[0] == first
    assert first[-1] in ".?"
    *_, title, one, two = out.splitlines()
    assert (title, [shlex.split(one), shlex.split(two)]) == ("examples:", examples(command))


class Parsed(BaseException):
    """A command line was read without an error."""


@pytest.mark.parametrize("command", TYPED)
def test_the_examples_are_commands(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their options exist, with these values, and so do the files and rows that they name."""
    depth = 0

    def stopping(name: str) -> Callable[..., Any]:
        read = getattr(argparse.ArgumentParser, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                found = read(*args, **options)
            finally:
                depth -= 1
            if not depth:
                raise Parsed
            return found

        return wrapped

    for name in ("parse_args", "parse_intermixed_args", "parse_known_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stopping(name))
    monkeypatch.chdir(ROOT)
    assert len(examples(command)) == 2
    assert examples(command)[0][1:][: len(started(command))] == started(command)
    for python, *words in examples(command):
        assert python == "python"
        module = words[0] == "-m"
        script, *rest = words[1:] if module else words
        monkeypatch.setattr(sys, "argv", [script, *rest])
        monkeypatch.delitem(sys.modules, f"{script}.__main__", raising=False)  # else runpy warns
        with pytest.raises(Parsed):
            (runpy.run_module if module else runpy.run_path)(script, run_name="__main__")
        for word in rest:
            top, slash, _ = word.partition("/")
            if slash and top in {name.split("/")[0] for name in rows.names()}:
                assert word in rows.names()
            elif slash and Path(top).is_dir() and rest[rest.index(word) - 1] != "--out":
                assert Path(word).exists(), word


@pytest.mark.parametrize("command", recipes())
def test_a_misspelt_key(command: str) -> None:
    status, out, errors, imported = run(command, "optimzer=adan")
    assert (status, out) == (2, "")
    assert errors == "error: optimzer: no such key; did you mean optimizer?"
    assert not sorted(imported & HEAVY)


@pytest.mark.parametrize("command", ["scripts/report.py", "benchmarks/optimizers.py", "vision/evaluate.py"])
def test_an_unknown_option(command: str) -> None:
    status, out, errors, imported = run(command, "--nonsense")
    assert (status, out) == (2, "")
    assert "--nonsense" in errors or "required" in errors
    assert not sorted(imported & HEAVY)


@pytest.mark.parametrize("arguments", [["--list", "mae"], ["mae/base", "--dry-run", "epochs=3"]])
def test_what_reproduce_shows(arguments: list[str]) -> None:
    status, out, errors, imported = run("scripts/reproduce.py", *arguments)
    assert (status, errors) == (0, "")
    assert "mae/base" in out
    assert not sorted(imported & HEAVY)


def test_the_help_of_a_recipe() -> None:
    _, out, _, _ = run("vision/train.py", "--help", "optimizer=adan", "epochs=7")
    assert out.startswith("Train an image classifier.\n\n    python vision/train.py")
    assert re.search(r"^  optimizer=adan  of adabelief, adafactor, .* adan,$", out, re.M)
    assert "  data=digits  of cifar10, digits, fashion_mnist, hfds, imagefolder, webdataset\n" in out
    assert "gpt2" not in out  # a model of other recipes
    assert "_core" not in out  # what files share is no option
    assert re.search(r"^  epochs=7 +passes over the training data$", out, re.M)
    assert re.search(r"^  optimizer.lr=0.004 +learning rate", out, re.M)
    assert re.search(r"^  schedule.warmup_steps=null +instead of warmup_epochs$", out, re.M)


@pytest.mark.parametrize("recipe", [each for each in recipes() if each != "scripts/prepare_text.py"])
def test_a_recipe_explains_itself_in_its_first_lines(recipe: str) -> None:
    doc = ast.get_docstring(ast.parse((ROOT / recipe).read_text())) or ""
    first, blank, *examples = doc.splitlines()[:4]
    assert first.endswith(".")
    assert not blank
    assert all(example.startswith(f"    python {recipe} ") for example in examples)
