"""The report: complete, self-contained, and readable in a browser, also on a phone and in the dark."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from repro.errors import UserError
from repro.ledger import html as page_module
from repro.ledger import rows
from repro.ledger.charts import Chart, Line, bars
from repro.ledger.html import counts
from repro.ledger.pictures import BROWSERS, COUNTS, PICTURES, take
from repro.ledger.rows import ROOT
from scripts import report

PHONE = 360  # pixels


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on the runs that come with the project, without released logs."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAN_RELEASED", str(folder))
        assert report.main([str(ROOT / "results"), "--out", str(folder / "report.html")]) == 0
    return folder / "report.html"


def test_the_picture_in_the_docs_shows_todays_counts() -> None:
    """They change with the ledger; `make report-pictures` takes the pictures again."""
    for name, (size, *_) in PICTURES.items():
        with Image.open(ROOT / "docs" / name) as image:
            assert image.size == size
            assert json.loads(image.info[COUNTS]) == dict(counts()), f"{name}: run `make report-pictures`"


def test_pictures_need_a_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"none of chromium, .* is installed; try apt-get install chromium"):
        take(tmp_path / "report.html", tmp_path)


@pytest.mark.recipe
def test_every_row_is_there_and_nothing_is_fetched(page: Path) -> None:
    text = page.read_text()
    for name in rows.names():
        assert name in text
    assert "digits-adan" in text
    assert "no released log is on this machine" in text.lower()
    outside = re.findall(r"(?:src|href|url\(|@import)\s*=?\s*[\"'(]?(?:https?:)?//[^\"')]*", text)
    assert not outside
    assert "<script" not in text


@pytest.mark.recipe
def test_a_run_that_cannot_be_read_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several copies of a run, only the undamaged one is shown."""
    monkeypatch.setenv("ADAN_RELEASED", str(tmp_path))
    monkeypatch.setattr(rows, "names", list)
    monkeypatch.setattr(report, "RECORDS", tmp_path / "none.jsonl")
    monkeypatch.setattr(page_module, "_benches", tuple)
    whole = ROOT / "results" / "vision" / "digits-adan"
    damages = {
        "config.yaml": ("a: &a [x]\nb: *a\n", "config.yaml: has aliases"),
        "summary.json": ("[" * 100_000, "summary.json: not JSON (nested too deeply)"),
        "environment.json": ("[3]", "environment.json: not a list of starts"),
        "metrics.jsonl": ("words\n", "metrics.jsonl"),
    }
    shutil.copytree(whole, tmp_path / "runs" / "whole")
    for name, (text, _) in damages.items():
        shutil.copytree(whole, tmp_path / "runs" / f"bad-{name}")
        path = tmp_path / "runs" / f"bad-{name}" / name
        path.write_text((path.read_text() if name == "metrics.jsonl" else "") + text)
    shutil.copytree(whole, tmp_path / "runs" / "bad-other")
    other = tmp_path / "runs" / "bad-other" / "summary.json"
    other.write_text('{"metric": "speed", "best": null, "final": {}}')
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "report.html")]) == 0
    first, *left_out = capsys.readouterr().out.splitlines()
    assert first.endswith(", 1 own runs")
    assert len(left_out) == len(damages) + 1, left_out
    text = (tmp_path / "report.html").read_text()
    for name, message in [*((name, message) for name, (_, message) in damages.items()), ("other", "")]:
        (line,) = (line for line in left_out if f"runs/bad-{name}" in line)
        assert line.startswith("left out: ")
        assert message in line
        assert html.escape(line.removeprefix("left out: "), quote=False)[:40] in text


@pytest.mark.recipe
def test_released_curves_are_drawn(released: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert report.main([str(tmp_path), "--out", str(out)]) == 0
    text = out.read_text()
    assert "vit_s_150_i" in text
    assert text.count('role="img"') > 5


def test_charts_take_the_pages_ink_and_share_no_ids() -> None:
    chart = Chart("a", "epoch", "loss, nats", [Line("one", pd.Series([3.0, 2.0, 1.0], [1, 2, 3]))])
    first, second = chart.svg(), bars("b", "ratio", [("x", 0.5, True), ("y", 3.0, False)])
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    hashed = [{name for name in names if re.fullmatch(r"[a-z][0-9a-f]{10}", name)} for names in ids]
    assert not hashed[0] & hashed[1]
    for svg in (first, second):
        assert "currentColor" in svg
        assert "#010203" not in svg
        assert "#000000" not in svg


def browser(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Load a file in a headless browser, and return its output."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *options]
    return subprocess.run(
        [*command, path.as_uri()], capture_output=True, text=True, check=True, timeout=120, cwd=path.parent
    )


@pytest.mark.recipe
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_renders_without_errors(page: Path, scheme: str) -> None:
    shell = page.with_name(f"phone-{scheme}.html")  # a frame of a phone's width, because windows are wider
    content = html.escape(page.read_text())
    shell.write_text(f"""<iframe id=f width={PHONE} height=800 srcdoc="{content}"></iframe><script>
f.onload = () => {{ const root = f.contentDocument.documentElement;
document.body.dataset.result = [root.clientWidth, root.scrollWidth, f.contentDocument.images.length,
f.contentWindow.getComputedStyle(f.contentDocument.body).backgroundColor].join("|") }}</script>""")
    dark = (
        "--blink-settings=preferredColorScheme=0"
        if scheme == "dark"
        else "--blink-settings=preferredColorScheme=1"
    )
    done = browser(shell, dark, "--virtual-time-budget=5000", "--dump-dom")
    assert "CONSOLE" not in done.stderr
    found = re.search(r'data-result="([^"]+)"', done.stdout)
    assert found is not None
    width, content, _, background = found[1].split("|")
    assert int(content) <= int(width) <= PHONE
    red = int(background.removeprefix("rgb(").split(",")[0])
    assert (red < 64) == (scheme == "dark")
