"""What all commands have in common."""

import contextlib
import fnmatch
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import nlp.config  # noqa: F401 (it registers the schemas)
import repro
from llm.config.pretrain import LlmConfig
from repro.hardware import show_time
from repro.runs import flatten
from repro.train import choices, multirun
from repro.train.cli import CONFIGS, READER_LEFT, exit_status
from repro.train.config import TrainConfig
from repro.train.renamed import RENAMED
from repro.train.usage import comments
from vision.train import main

ROOT = Path(__file__).parents[2]
RECIPES = ("vision", "pretrain_mae", "bert", "glue", "lstm", "transformer_xl", "llm", "finetune")


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


def test_an_interruption_outside_of_the_commands_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """Such as one in the imports."""
    with pytest.raises(SystemExit) as ended:
        repro._end(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert (ended.value.code, capfd.readouterr().err) == (130, "interrupted\n")


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
    known = flatten(cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(LlmConfig))))
    assert new in known
    assert old not in known


def test_each_model_and_data_set_fits_a_recipe() -> None:
    """And no pattern is left over from one that was renamed."""
    nodes = {name: ConfigStore.instance().load(f"{name}_schema.yaml").node for name in RECIPES}
    schemas = {name: OmegaConf.get_type(node) or TrainConfig for name, node in nodes.items()}
    known = {name: choices.groups(CONFIGS, name, schema) for name, schema in schemas.items()}
    for group in ("model", "data"):
        files = {path.stem for path in (CONFIGS / group).glob("[!_]*.yaml")}
        assert set().union(*(groups.get(group, ()) for groups in known.values())) == files
    for name, schema in schemas.items():
        for group, patterns in schema.options.items():
            assert all(fnmatch.filter(known[name][group], pattern) for pattern in patterns), (name, group)


def test_comments_of_both_kinds() -> None:
    source = (
        "    # above,\n    # in lines\n    one: int = 1\n    two: str = 'a'  # beside\n    three: int = 3\n"
    )
    assert comments(source) == {"one": "above, in lines", "two": "beside", "three": ""}
    assert comments("lr: 1.0e-3  # a rate\nname: adan") == {"lr": "a rate", "name": ""}


def test_every_key_of_the_loop_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    bare = re.findall(r"^  ([a-z_.]+)=\S*$", capsys.readouterr().out, re.M)
    assert bare == ["optimizer.name"]  # the file's name


def test_the_header_of_a_job_has_what_the_others_lack() -> None:
    words = ["-m", "optimizer=adan,adamw", "epochs=2", "seed=0,1"]
    assert multirun.header(words, 0) == "1 of 4: optimizer=adan seed=0"
    assert multirun.header(words, 3) == "4 of 4: optimizer=adamw seed=1"
    assert multirun.header(["-m", "seed=3"], 0) == "1 of 1: "


def test_times_are_in_the_unit_of_their_size() -> None:
    shown = {
        2 / 3600: "2 s",
        119 / 3600: "119 s",
        0.1: "6 min",
        1.5: "90 min",
        2.5: "2.5 h",
        40: "40 h",
        99: "4.1 days",
    }
    assert {hours: show_time(hours) for hours in shown} == shown
    assert show_time(2400) == "100 days"


def test_every_command_that_can_use_repro_ends_that_way() -> None:
    for folder in ("scripts", "vision", "nlp", "llm"):
        for path in (ROOT / folder).glob("*.py"):
            text = path.read_text()
            if '__name__ == "__main__"' in text and "\nfrom repro" in text:
                assert "exit_status" in text or "entry_point(" in text or "command(" in text, path
