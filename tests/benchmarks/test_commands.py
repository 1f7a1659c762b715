"""The benchmark of commands measures processor time and says what imported torch."""

import json
from pathlib import Path

import pytest

from benchmarks import commands
from repro.results import as_text


def test_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; sys.modules['torch'] = None; sys.exit(3)"
    monkeypatch.setattr(commands, "OTHERS", (["-c", code],))
    wanted = ["scripts/constraints.py", "adan_optim", code]
    assert commands.main(["--rounds", "1", "--only", *wanted, "--out", str(tmp_path / "commands")]) == 0
    out = capsys.readouterr().out
    runs = json.loads((tmp_path / "commands.json").read_text())["runs"]
    assert [run["words"][:2] for run in runs] == [
        ["-m", "adan_optim"],
        ["scripts/constraints.py", "--help"],
        ["-c", code],
    ]
    assert [run["status"] for run in runs] == [0, 0, 3]
    assert not any(run["torch"] for run in runs)
    assert all(0 < run["seconds"][0] < 60 for run in runs)
    assert "`python -m adan_optim --help`" in out
    assert out.rstrip("\n") == as_text((tmp_path / "commands.md").read_text())


def test_an_import_of_torch_is_seen(tmp_path: Path) -> None:
    (tmp_path / "torch.py").touch()
    run = commands.measure(
        ["-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import torch"], tmp_path, 1
    )
    assert (run["torch"], run["status"]) == (True, 0)
