"""What all commands have in common."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from llm.config.pretrain import LlmConfig
from repro.train.cli import READER_LEFT, exit_status
from repro.train.renamed import RENAMED
from repro.train.run_folder import flatten
from vision.train import main

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def closed_stdout() -> Iterator[None]:
    """Print to a program that has ended; and close stdout at last, as the interpreter does."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout, contextlib.redirect_stdout(stdout):
        yield


@pytest.mark.parametrize("lines", [1, 10_000])
def test_a_reader_that_ends_first_is_no_error(lines: int, capsys: pytest.CaptureFixture[str]) -> None:
    """As in `command | head`: what has been printed may only be written when the command ends."""

    @exit_status
    def command() -> int:
        print("a line\n" * lines)
        return 0

    with closed_stdout():
        assert command() == READER_LEFT == 141
        print("more")
    assert capsys.readouterr().err == ""


def test_another_broken_pipe_is_raised() -> None:
    @exit_status
    def command() -> int:
        reader, writer = os.pipe()
        os.close(reader)
        os.write(writer, b"x")
        return 0

    with pytest.raises(BrokenPipeError):
        command()


def test_recipes_too(capsys: pytest.CaptureFixture[str]) -> None:
    with closed_stdout():
        assert main(["--cfg", "job"]) == READER_LEFT
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("prefix", ["", "+"])
@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_names_its_successor(
    old: str, new: str, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it is overridden or added; and the successor is a key of some recipe's configuration."""
    assert main([f"{prefix}{old}=3"]) == 2
    assert capsys.readouterr().err == f"error: {old}: was renamed; use {new}\n"
    known = flatten(OmegaConf.to_container(OmegaConf.structured(LlmConfig)))
    assert new in known
    assert old not in known


def test_every_command_that_can_use_repro_ends_that_way() -> None:
    for folder in ("scripts", "vision", "nlp", "llm"):
        for path in (ROOT / folder).glob("*.py"):
            text = path.read_text()
            if '__name__ == "__main__"' in text and "\nfrom repro" in text:
                assert "exit_status" in text or "entry_point(" in text or "command(" in text, path
