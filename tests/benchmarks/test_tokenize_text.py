"""benchmarks/tokenize_text.py on a little text: what is in the result, not how fast anything is."""

import hashlib
import json
import sys
from pathlib import Path

import pytest

from benchmarks import tokenize_text
from repro.results import as_text


@pytest.mark.recipe
def test_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/tokenize_text.py"])
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    text, out = tmp_path / "text.txt", tmp_path / "results" / "tokenize"
    text.write_text(
        "".join(f"line {number} of the text, {number * number} words\n" for number in range(2000))
    )
    words = ["--text", str(text), "--size", "400KB", "--rounds", "1", "--workers", "1", "--out", str(out)]
    assert tokenize_text.main(words) == 0
    result = json.loads(out.with_suffix(".json").read_text())
    assert result["text"]["bytes"] >= 400_000
    assert result["text"]["tokens"] > 50_000
    assert [len(runs) for runs in result["runs"].values()] == [1, 1, 1, 1]
    seconds = {kind: runs[0]["seconds"] for kind, runs in result["runs"].items()}
    bare = min(seconds["bare, processes"], seconds["bare, threads"])
    assert result["ratio"] == pytest.approx(bare / seconds["prepare"])
    later = tokenize_text.after_start([(5.0, 1.0, 3.0, 2.0), (6.0, 2.0, 3.0, 4.0), (9.0, 1.0, 4.0, 4.0)])
    assert later == 0.5  # of 2 / 4, 3 / 4 and 4 / 8
    assert tokenize_text.after_start([(5.0, 1.0, 3.0, 2.0), (2.0, 2.0, 3.0, 4.0)]) is None
    assert 20 < result["peak_MB_of_an_eighth"] < 2000
    page = out.with_suffix(".md").read_text()
    assert f"{as_text(page)}\n" == capfd.readouterr().out
    assert page.count("| bare, ") == 2
    assert "made of text.txt, " in page


def test_made_text_has_new_words_and_does_not_repeat(tmp_path: Path) -> None:
    words = [hashlib.sha256(bytes([number])).hexdigest()[:12] for number in range(250)]
    lines = [" ".join(words[(7 * number + place) % 250] for place in range(30)) for number in range(100)]
    size = tokenize_text.make_text(lines, 200_000, tmp_path / "made.txt")
    made = (tmp_path / "made.txt").read_text().splitlines()
    assert 200_000 <= size == (tmp_path / "made.txt").stat().st_size < 201_000
    found = [word for line in made for word in line.split()]
    assert sum(word not in words for word in found) / len(found) == pytest.approx(0.02, abs=0.005)
    assert len(set(made)) > 0.7 * len(made)


def test_wrong_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenize_text.main(["--rounds", "0"]) == 2
    assert tokenize_text.main(["--text", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == (
        f"error: --rounds 0: must be at least 1\nerror: --text {tmp_path / 'none'}: no such file\n"
    )
