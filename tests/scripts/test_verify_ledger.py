"""scripts/verify_ledger.py: the table, the files, the exit status."""

import json
import runpy
from pathlib import Path

import pytest

from repro.ledger.rows import ROOT, load

VERIFY = runpy.run_path(str(ROOT / "scripts" / "verify_ledger.py"))["main"]
ROW = "glue/cola"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder of released files."""
    monkeypatch.setenv("ADAN_RELEASED", str(tmp_path / "released"))
    return tmp_path / "released"


def test_without_the_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert VERIFY([ROW, "memory/resnet50"]) == 0
    header, rule, *rest = capsys.readouterr().out.splitlines()
    assert header.split() == [
        *("row", "files", "settings", "lr", "epochs", "validation", "parameters", "figure", "verdict")
    ]
    verdicts = " ".join(line[rule.rindex(" ") :].strip() for line in rest[: rest.index("")])
    assert verdicts.strip() == "log not here: cola-adan.yaml nothing released"
    assert "* glue/cola, files: not here: NLP/BERT/config/finetuning/cola-adan.yaml" in rest
    assert "2 rows: 1 log not here, 1 nothing released." in rest


def test_a_difference(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = here / load(ROW).row.files[0].path
    path.parent.mkdir(parents=True)
    path.write_text("task: {_name: sentence_prediction}\noptimization: {lr: [0.001]}\n")
    assert VERIFY([ROW, "--out", str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    assert "DIFFERS" in out
    assert "* glue/cola, settings: checkpoint.reset" not in out  # a partial file need not have it
    assert "1 row: 1 differs." in out
    written = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert written["command"] == "python scripts/verify_ledger.py glue/cola"
    assert written["rows"][ROW]["verdict"] == "differs: files, settings"
    assert written["rows"][ROW]["checks"]["settings"]["passed"] is False
    assert "| glue/cola" in (tmp_path / "out" / "verify.md").read_text()


def test_out_changes_the_rows_asked_for_alone(here: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", "memory/resnet50"
    assert VERIFY([ROW, other, "--out", str(out)]) == 0
    before = json.loads((out / "verify.json").read_text())
    before["rows"] |= {
        "gone/row": before["rows"][other],
        other: {**before["rows"][other], "missing": ["x.log"]},
    }
    (out / "verify.json").write_text(json.dumps(before | {"commit": "of all"}))
    path = here / load(ROW).row.files[0].path
    path.parent.mkdir(parents=True)
    path.write_text("task: {_name: sentence_prediction}\n")
    assert VERIFY([ROW, "--out", str(out)]) == 1
    after = json.loads((out / "verify.json").read_text())
    assert list(after["rows"]) == [ROW, other]  # and no row that the ledger no longer has
    assert after["rows"][other] == before["rows"][other]
    assert after["rows"][ROW]["verdict"] == "differs: files, settings"
    assert after["commit"] == "of all"
    assert after["rows"][ROW]["alone"].keys() == {"commit", "date"}
    assert after["summary"][0] == "2 rows: 1 differs, 1 log not here."
    page = (out / "verify.md").read_text()
    assert "log not here: x.log" in page
    assert f"* {ROW}: checked by itself at commit" in page


def test_out_where_the_file_is_damaged(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "verify.json").write_text('{"rows": {')
    assert VERIFY([ROW, "--out", str(tmp_path)]) == 2
    assert f"error: {tmp_path / 'verify.json'}: cannot be read" in capsys.readouterr().err
    assert (tmp_path / "verify.json").read_text() == '{"rows": {'


def test_bad_input(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert VERIFY(["glue/colla"]) == 2
    assert "did you mean glue/cola?" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert VERIFY([ROW, "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith(f"error: --out={tmp_path / 'file'}: cannot be written to")
