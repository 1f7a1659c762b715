"""A run's folder: what a run takes, what it leaves alone, and what it says of damaged files."""

import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from test_loop import StopError, folder, stop_after
from toy import ToyTask

from repro.errors import UserError
from repro.runs import flatten
from repro.train.config import TrainConfig
from repro.train.run_folder import RunFolder, refuse_foreign_page, write_atomically
from repro.train.trainer import train


def contents(path: Path) -> dict[str, str]:
    """Everything below a folder, by name; a folder by a slash, a link by where it leads."""
    found = {}
    for child in sorted(path.rglob("*")):
        text = f"-> {os.readlink(child)}" if child.is_symlink() else "/" if child.is_dir() else ""
        found[str(child.relative_to(path))] = text or child.read_bytes().hex()
    return found


@pytest.fixture
def begun(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `run` of a run that was stopped after its fifth step, with files of somebody else."""
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(StopError):
            train(ToyTask(), config, "run")
    path = folder(config, "run")
    (path / "notes.txt").write_text("mine")
    (path / "checkpoints/kept").mkdir()
    return path


def mine(path: Path) -> None:
    (path / "thesis").mkdir()
    (path / "thesis/chapter.tex").write_text("words")


def foreign_config(path: Path) -> None:
    mine(path)
    (path / "config.yaml").write_text("title: a site\n")
    (path / "checkpoints/step-000000001").mkdir(parents=True)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (mine, r"has thesis in it, and no config\.yaml of a run; set run\.name=NAME"),
        (foreign_config, r"config\.yaml: is no run's; set run\.name=NAME"),
        (
            lambda path: (path / "config.yaml").write_text("a: ["),
            r"config\.yaml: not YAML .*repair it, or set",
        ),
    ],
)
def test_a_folder_of_something_else_is_refused_as_it_is(
    config: TrainConfig, fill: Callable[[Path], object], message: str, overwrite: bool
) -> None:
    path = folder(config, "run")
    path.mkdir(parents=True)
    fill(path)
    before = contents(path)
    config.run.overwrite = overwrite
    with pytest.raises(UserError, match=message):
        train(ToyTask(), config, "run")
    assert contents(path) == before


@pytest.mark.parametrize("made", [False, True])
def test_a_run_that_never_begins_leaves_what_it_found(config: TrainConfig, made: bool) -> None:
    path = folder(config, "run")
    if made:
        path.mkdir(parents=True)
    config.optimizer["lr"] = -1.0
    with pytest.raises(UserError, match="lr"):
        train(ToyTask(), config, "run")
    assert path.exists() == made
    assert not made or not contents(path)


def test_a_run_that_never_begins_removes_no_file_of_others(config: TrainConfig) -> None:
    path = folder(config, "run")
    with closing(RunFolder(path)):
        (path / "mine").touch()
    assert contents(path) == {"mine": ""}


def test_what_cannot_work_overwrites_nothing(config: TrainConfig, begun: Path) -> None:
    before = contents(begun)
    config.run.overwrite, config.optimizer["lr"] = True, -1.0
    with pytest.raises(UserError, match="lr"):
        train(ToyTask(), config, "run")
    assert contents(begun) == before


def test_overwriting_removes_what_is_a_runs_alone(config: TrainConfig, begun: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    os.rename(begun / "checkpoints", disk)
    (begun / "checkpoints").symlink_to(disk)
    (begun / "wandb").mkdir()
    (begun / ".tmp-123-config.yaml").write_text("left by a kill")
    (begun / "made").mkdir()
    task = ToyTask()
    task.products = ("made",)
    config.run.overwrite, config.batch_size = True, 16
    summary = train(task, config, "run")
    assert summary["steps"] == 16
    names = {path.name for path in begun.iterdir()}
    assert {"notes.txt", "config.yaml", "summary.json"} < names
    assert not names & {"wandb", "made", ".tmp-123-config.yaml"}
    assert (begun / "checkpoints").is_symlink()
    assert "kept" in os.listdir(disk)
    assert "step-000000003" not in os.listdir(disk)
    assert len(json.loads((begun / "environment.json").read_text())) == 1


@pytest.mark.parametrize("name", ["..", ".", "", "a/../../b", "/tmp/x"])
def test_names_that_lead_elsewhere(config: TrainConfig, name: str) -> None:
    config.run.name = name
    with pytest.raises(UserError, match=r"run\.name=.*must name a folder below run\.root"):
        config.check()


def bomb() -> str:
    """YAML of which each line has the one before it ten times: 10^30 values, if it is written out."""
    return "a0: &a0 [x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 31)
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", bomb(), "has aliases"),
        ("config.yaml", "a: " + "[" * 5000, "too large or nested too deeply"),
        ("config.yaml", "- run", "not a mapping"),
        ("environment.json", "[" * 100_000, "nested too deeply"),
        ("environment.json", "{}", "not a JSON list; repair or delete it"),
        ("summary.json", "{", "not JSON .*; delete it, and the same command finishes"),
        ("summary.json", '{"a": ' * 500 + "1" + "}" * 500, "nested too deeply"),
        ("metrics.jsonl", '{"step": 1}\nwords\n', "line 2 is not a record; repair or delete that line"),
        ("metrics.jsonl", '{"step": "one"}\n', "line 1 is not a record"),
        ("speed.jsonl", "[]\n", "line 1 is not a record"),
        ("metrics.jsonl", "a" * 2**21, "line 1 is not a record"),
        ("monitor.jsonl", '{"step": 1, "loss": }\n', "line 1 is not a sample: repair or delete it"),
        ("checkpoints", "", "is not a folder, nor a link to one"),
    ],
)
def test_a_damaged_file_is_named_in_a_line(
    config: TrainConfig, begun: Path, tmp_path: Path, name: str, text: str, message: str
) -> None:
    config.run.monitor = 1
    path = begun / name
    if path.is_dir():
        os.rename(path, tmp_path / "away")
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        train(ToyTask(), config, "run")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_text() == text


def test_a_pipe_is_not_waited_for(config: TrainConfig, begun: Path) -> None:
    (begun / "config.yaml").unlink()
    os.mkfifo(begun / "config.yaml")
    with pytest.raises(UserError, match=r"config\.yaml: a pipe or a device, not a regular file"):
        train(ToyTask(), config, "run")


def test_a_link_to_nothing_as_checkpoints(config: TrainConfig, begun: Path, tmp_path: Path) -> None:
    os.rename(begun / "checkpoints", tmp_path / "away")
    (begun / "checkpoints").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="checkpoints is not a folder, nor a link to one"):
        train(ToyTask(), config, "run")


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=f"cannot write {path}: .*No space left on device"):
        write_atomically(path, "new")
    assert contents(tmp_path) == {"file": b"old".hex()}


def test_a_page_that_somebody_wrote_stays(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    refuse_foreign_page(page, "scripts/x.py")
    page.write_text("# My project\n")
    with pytest.raises(UserError, match=r"README\.md: was not made by scripts/x\.py; give another --out"):
        refuse_foreign_page(page, "scripts/x.py")
    page.write_text("# Results\n\nMade by `python scripts/x.py`.\n")
    refuse_foreign_page(page, "scripts/x.py")


def test_flat_keys_are_text() -> None:
    assert flatten({"a": {1: {"b": 2}}}) == {"a.1.b": 2}  # type: ignore[dict-item]
