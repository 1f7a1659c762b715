"""What all commands have in common."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from repro.cli import READER_LEFT, exit_status
from vision.train import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def closed_stdout(monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """A stdout that goes to a program that has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        yield stdout


@pytest.mark.parametrize("lines", [1, 10_000])
def test_a_reader_that_ends_first_is_no_error(
    lines: int, closed_stdout: TextIO, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `command | head`: what has been printed may only be written when the command ends."""

    @exit_status
    def command() -> int:
        print("a line\n" * lines)
        return 0

    assert command() == READER_LEFT == 141
    print("more")
    closed_stdout.flush()  # as the interpreter does at its end; it goes nowhere
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


def test_recipes_too(closed_stdout: TextIO, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cfg", "job"]) == READER_LEFT
    assert capsys.readouterr().err == ""


def test_every_command_that_can_use_repro_ends_that_way() -> None:
    for folder in ("scripts", "vision", "nlp", "llm"):
        for path in (ROOT / folder).glob("*.py"):
            text = path.read_text()
            if '__name__ == "__main__"' in text and "\nfrom repro" in text:
                assert "exit_status" in text or "@entry_point" in text, path
