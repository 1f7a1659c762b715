r"""What others wrote: pipes, bombs, nesting without end, and what a terminal would act on."""

import gzip
import os
import runpy
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from repro import interop, logs
from repro.errors import UserError
from repro.explain import explain
from repro.logs import source
from repro.logs.fairseq import read_config
from repro.logs.timm import read_args
from repro.reading import parse_json, parse_yaml, printable, read_bytes, unpack
from repro.text import documents

ROOT = Path(__file__).resolve().parents[2]
# A kilobyte that is nine to the power of nine values in whatever copies or prints it.
ALIASES = "".join(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(9))
RED = "\x1b[31m"


@pytest.fixture
def pipe(tmp_path: Path) -> Callable[[str], Path]:
    """Make a pipe that nobody writes to."""

    def make(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path)
        return path

    return make


def test_only_regular_files_are_opened(tmp_path: Path, pipe: Callable[[str], Path]) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert read_bytes(tmp_path / "file") == b"content"
    with pytest.raises(OSError, match="a pipe or a device, not a regular file"):
        read_bytes(pipe("pipe"))
    with pytest.raises(OSError, match="a pipe or a device, not a regular file"):
        read_bytes(Path("/dev/zero"))
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        read_bytes(tmp_path)


def test_every_reader_refuses_a_pipe(pipe: Callable[[str], Path]) -> None:
    for path in (
        pipe("a.csv"),
        pipe("runs/events.out.tfevents.1").parent,
        pipe("hf/trainer_state.json").parent,
    ):
        with pytest.raises(UserError, match="a pipe or a device"):
            logs.read(path)
    for path in (pipe("a.pt"), pipe("a.safetensors")):
        with pytest.raises(UserError, match="a pipe or a device"):
            interop.read(path)
    path = pipe("code/a.py")
    (piece,) = documents.pieces(path.parent, [path], 100)
    with pytest.raises(UserError, match=r"a\.py: cannot be read \(a pipe or a device"):
        [*piece.batches()]


def test_unpacked_content_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(gzip.compress(b"0" * 10_000))
    assert unpack(path, 10_000) == b"0" * 10_000
    with pytest.raises(OSError, match="has more than 9,999 bytes unpacked"):
        unpack(path, 9_999)
    monkeypatch.setattr(source, "UNPACKED", 9_999)
    with pytest.raises(UserError, match=r"log\.txt: more than 9,999 bytes unpacked; is it a log\?"):
        logs.read(path)


def test_json_is_bounded() -> None:
    assert parse_json('{"a": [1, {"b": []}]}') == {"a": [1, {"b": []}]}
    assert parse_json("[" * 100 + "]" * 100)
    for text in (
        "[" * 101 + "]" * 101,
        "[" * 900 + "]" * 900,
        "[" * 100_000,
        '{"a":' * 900 + "1" + "}" * 900,
    ):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)
    for text in ("", "{", "9" * 5000):
        with pytest.raises(ValueError, match=r"Expecting|Exceeds the limit"):
            parse_json(text)


def test_yaml_is_bounded() -> None:
    assert parse_yaml("a: &x [1, {b: c}]\nd: *x\n") == {"a": [1, {"b": "c"}], "d": [1, {"b": "c"}]}
    assert parse_yaml("") is None
    for text, message in (
        (ALIASES, "has more than 100,000 values"),
        ("a: &x [*x]", "contains itself"),
        ("[" * 300 + "]" * 300, "nested too deeply"),
        ("[" * 10_000, "nested too deeply"),
        ("d: 2001-13-45", "month must be in 1..12"),
        ("n: " + "1" * 5000, "Exceeds the limit"),
        ("x: !!bool maybe", "'maybe'"),
        ("x: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("{", "expected the node content"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            parse_yaml(text)
        assert "\n" not in str(raised.value)


def test_settings_of_aliases_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "args.yaml"
    path.write_text(f"model: x\ntask: x\nmore:\n{ALIASES}")
    for read in (read_args, read_config):
        with pytest.raises(UserError, match=r"args\.yaml: not .*has more than 100,000 values"):
            read(source.Source(path))


def test_checkpoints_that_grow_in_memory(tmp_path: Path) -> None:
    """Lists that share their parts, a dict in itself, and a compressed file."""
    shared: Any = "x"
    for _ in range(12):
        shared = [shared] * 9
    itself: dict[str, Any] = {}
    itself |= {"a": itself, "b": itself}
    deep: Any = 1
    for _ in range(3000):
        deep = (deep,)
    path, limit = tmp_path / "x.pt", sys.getrecursionlimit()
    for args, message in ((shared, "repeats"), (itself, "repeats"), (deep, "nested deeper than in any")):
        sys.setrecursionlimit(20_000)
        torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 1, "arch": "x", "args": {"x": args}}, path)
        sys.setrecursionlimit(limit)
        with pytest.raises(UserError, match=message):
            interop.read(path)
    torch.save({"w": torch.ones(2)}, path)
    assert interop.read(path).weights.keys() == {"w"}
    with (
        zipfile.ZipFile(path) as stored,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for name in stored.namelist():
            out.writestr(name, stored.read(name))
    with pytest.raises(UserError, match="does not compress"):
        interop.read(tmp_path / "y.pt")


def test_what_a_terminal_acts_on_is_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("Größe ± 1") == "Größe ± 1"
    assert printable(f"{RED}a\r\n\x9b\u202e\udcff") == r"\x1b[31ma\r\n\x9b\u202e\udcff"
    checkpoint, show = (
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))["main"] for name in ("checkpoint", "logs")
    )
    torch.save(
        {"state_dict": {f"w{RED}": torch.ones(2)}, "epoch": 1, "arch": f"x{RED}", "args": {"lr": RED}},
        tmp_path / f"{RED}.pt",
    )
    assert checkpoint([str(tmp_path / f"{RED}.pt")]) == 0
    (tmp_path / f"{RED}\n.csv").write_text(f"{RED}\n")
    assert checkpoint([str(tmp_path / f"{RED}\n.csv")]) == 2
    assert show(["show", str(tmp_path / f"{RED}\n.csv")]) == 2
    (tmp_path / "summary.csv").write_text(
        f"epoch,train_loss,eval_loss,eval_top1,x{RED}\n0,6.5,6,1,1\n1,{RED},1,1,1\n"
    )
    assert show(["show", str(tmp_path / "summary.csv")]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert out.count(r"\x1b[31m") >= 5
    assert len(err.splitlines()) == 2
    assert err.count(r"\x1b[31m\n.csv") == 2


class Broken(Dataset[int]):
    """A data set with a file of a bad name."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise UserError(f"{RED}.jpg: broken")


def test_an_error_is_one_line_with_all_of_it() -> None:
    assert explain(UserError(f"a\n{RED}b: no such file")) == r"a\n\x1b[31mb: no such file"
    with pytest.raises(UserError) as raised:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert explain(raised.value) == r"\x1b[31m.jpg: broken"
