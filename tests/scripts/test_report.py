"""The report: complete, self-contained, readable for everybody. test_report_browser.py tests its script."""

import html
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from repro.errors import UserError
from repro.ledger import curves, rows
from repro.ledger import html as page_module
from repro.ledger.charts import PAGE, Chart, Line, Row, Rows
from repro.ledger.html import TEMPLATES, counts, findings, tables
from repro.ledger.pictures import PICTURES, SHOWN, take
from repro.ledger.rows import ROOT
from repro.ledger.shown import STATES, TASKS, Shown, words
from repro.plots import COLOURS, INK
from scripts import report

FEW = [
    "glue/cola",
    "glue/cola_adam",
    "imagenet/vit_s_300",
    "memory/gpt2_grid",
    "memory/vit_b",
    "swin/swin_t_150",
]
LARGEST = 400_000  # bytes
VOID = {"meta", "link", "br", "input"}


@dataclass
class Element:
    """An element of a page."""

    tag: str
    attributes: dict[str, str]
    parent: "Element | None"
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def all(self, *tags: str) -> Iterator["Element"]:
        """Yield the elements below of some tags, or all of them."""
        for child in self.children:
            if not tags or child.tag in tags:
                yield child
            yield from child.all(*tags)

    @property
    def words(self) -> str:
        """The text in it and below it, in any order."""
        return self.text + "".join(child.words for child in self.children)

    def has(self, name: str) -> bool:
        """Whether it has a class."""
        return name in self.attributes.get("class", "").split()


class Reader(HTMLParser):
    """Reads a page; an element that is not closed, or not open, is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = self.open = Element("", {}, None)
        self.feed(text)
        self.close()
        assert self.open is self.root, f"<{self.open.tag}> is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice: {attrs}"
        element = Element(tag, {name: value or "" for name, value in attrs}, self.open)
        self.open.children.append(element)
        if tag not in VOID:
            self.open = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.children.append(Element(tag, {name: value or "" for name, value in attrs}, self.open))

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.tag, f"</{tag}> within <{self.open.tag}> {self.open.attributes}"
        assert self.open.parent is not None
        self.open = self.open.parent

    def handle_data(self, data: str) -> None:
        self.open.text += data


@pytest.fixture(scope="module", params=["few", pytest.param("whole", marks=pytest.mark.recipe)])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report without released logs: of a few rows and runs, and the whole one."""
    folder = tmp_path_factory.mktemp("report")
    runs = ROOT / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAN_RELEASED", str(folder))
        if request.param == "few":
            patch.setattr(rows, "names", lambda: FEW)
            patch.setattr(report, "RECORDS", folder / "none.jsonl")
            runs = runs / "nlp" / "proxy-glue_cola-seed1"
        assert report.main([str(runs), "--out", str(folder / "report.html")]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def page(path: Path) -> Element:
    """The page as elements."""
    return Reader(path.read_text()).root


def names_of(page: Element) -> list[str]:
    """The rows that a page must have."""
    return FEW if len(list(page.all("article"))) < 50 else rows.names()


def test_it_is_small_and_needs_no_network(path: Path, page: Element) -> None:
    assert path.stat().st_size < LARGEST
    for element in page.all():
        if element.tag != "a":
            for name in ("href", "src", "srcset", "action", "data", "poster"):
                assert element.attributes.get(name, "data:,") == "data:,", element
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", path.read_text())


def test_every_id_is_there_once_and_every_link_leads_somewhere(page: Element) -> None:
    ids = Counter(e.attributes["id"] for e in page.all() if "id" in e.attributes)
    assert set(ids.values()) == {1}, ids.most_common(3)
    for link in page.all("a"):
        target = link.attributes["href"]
        assert (
            target.startswith("https://github.com/sail-sg/Adan/blob/") or target.removeprefix("#") in ids
        ), target
        assert link.words.strip()
    for element in page.all():
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert element.attributes.get(name, next(iter(ids))) in ids, element


def test_it_can_be_read_with_a_screen_reader_and_the_keyboard(page: Element) -> None:
    (root,) = page.all("html")
    assert root.attributes["lang"] == "en"
    assert [len(list(page.all(tag))) for tag in ("h1", "main", "header", "title")] == [1, 1, 1, 1 + sum(
        1 for e in page.all("title") if e.parent is not None and e.parent.tag != "head")]  # fmt: skip
    (body,) = page.all("body")
    first = next(body.all("a", "button", "select", "summary"))
    assert first.has("skip")
    for region in page.all("nav", "section", "form"):
        assert {"aria-label", "aria-labelledby"} & region.attributes.keys(), region
    levels = [int(heading.tag[1]) for heading in page.all("h1", "h2", "h3", "h4")]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for head in page.all("th"):
        assert head.attributes["scope"] in ("col", "row", "rowgroup"), head
        assert head.words.strip()
    for table in page.all("table"):
        assert next(table.all("caption")).words.strip()
        assert table.parent is not None
        assert table.parent.has("scroll")
        assert {"tabindex", "role", "aria-label"} <= table.parent.attributes.keys()
    for chart in page.all("svg"):
        if chart.parent is not None and chart.parent.has("plot"):
            assert chart.attributes["role"] == "img"
            assert len(chart.attributes["aria-label"]) > 20
    for choice in page.all("select"):
        assert choice.parent is not None
        assert choice.parent.tag == "label"


def test_every_row_is_in_the_ledger_and_has_an_article(page: Element) -> None:
    entries = [e for e in page.all("tr") if "data-status" in e.attributes]
    shown = [next(e.all("a")).attributes["href"] for e in entries]
    names = names_of(page)
    assert sorted(shown) == sorted(f"#{name}" for name in names)
    assert sorted(e.attributes["id"] for e in page.all("article")) == sorted(names)
    for entry, link in zip(entries, shown, strict=True):
        row = rows.load(link[1:]).row
        has_number = bool(row.cells) or any(figure.value is not None for figure in row.published)
        assert entry.has("published") == has_number, link
        statuses = entry.attributes["data-status"].split()
        assert ("published" in statuses, "unpublished" in statuses) == (has_number, not has_number)
    for body in page.all("tbody"):  # rows without a number are apart
        of_body = [e for e in body.all("tr") if "data-status" in e.attributes]
        assert len({e.has("published") for e in of_body}) <= 1
        if of_body and not of_body[0].has("published"):
            assert next(body.all("tr")).words.strip() == "Without a published number"


def test_each_filter_has_what_rows_have(page: Element) -> None:
    entries = [e for e in page.all("tr") if "data-status" in e.attributes]
    for choice in page.all("select"):
        offered = [e.attributes["value"] for e in choice.all("option")]
        assert offered[0] == ""
        had = {value for e in entries for value in e.attributes[f"data-{choice.attributes['name']}"].split()}
        assert set(offered[1:]) == had
        assert len(set(offered)) == len(offered)


def test_what_was_found_is_counted(page: Element) -> None:
    (found,) = (e for e in page.all("section") if e.attributes.get("id") == "found")
    sentences = [e.words for e in found.all("p") if not e.has("soft")]
    entries = [e for e in page.all("tr") if "data-status" in e.attributes]
    numbers = Counter(status for e in entries for status in e.attributes["data-status"].split())
    assert len(sentences) == 3
    assert sentences[0] == (
        f"The ledger has {len(entries)} rows: {numbers['published']} with a published number, "
        f"{numbers['unpublished']} without one."
    )
    assert f"with {len(entries) - numbers['unreleased']} rows: " in sentences[1]
    assert f"configurations of {numbers['agrees']} agree" in sentences[1]
    assert re.match(
        rf"{numbers['own']} rows? (has|have) runs of our own, all of them small proxies", sentences[2]
    )


def shown(name: str, verdict: str, **changes: object) -> Shown:
    """A row of the ledger with another verdict."""
    found = Shown(rows.load(name), verdict, {})
    for key, value in changes.items():
        setattr(found.row, key, value)
    return found


def test_findings_in_words() -> None:
    """One row that agrees, one that differs, one whose published number is neither of the log's."""
    several = [
        shown("imagenet/vit_s_150", "verified"),
        shown("imagenet/vit_s_300", "differs: lr"),
        shown("imagenet/vit_b_150", "log not here: x"),
        shown("swin/swin_t_150", "nothing released"),
    ]
    first, second, third = findings(several)
    assert first == "The ledger has 4 rows: 3 with a published number, 1 without one."
    assert "with 3 rows: our configurations of 1 agree with all that these files fix, 1 differs" in second
    assert "of 3 published numbers with a log, 2 are" in second
    assert third == "0 rows have runs of our own."


def test_a_run_at_the_published_scale_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "distance", lambda each: 0.0123)
    found = shown("imagenet/vit_s_150", "verified")
    runs = page_module.own_runs(page_module.finished([ROOT / "results" / "vision" / "proxy-vit_s_150_i"])[0])[
        0
    ]
    runs[0].run.config["row.scale"] = "paper"
    found.runs = runs
    assert findings([found])[2] == (
        "1 row has runs of our own, 1 of them at the published scale, which end within 1.2% of what was "
        "published."
    )


def luminance(colour: str) -> float:
    """The relative luminance of #rrggbb, by WCAG."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    """The contrast of two colours, by WCAG."""
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast(dark: bool) -> None:
    style = (TEMPLATES / "page.css").read_text()
    light_block, dark_block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#\w{6});", dark_block if dark else light_block))
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for text in ("ink", "soft", "link", "good", "bad", "wait"):
        for ground in ("page", "tint"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    used = set(re.findall(r"var\(--(\w+)", style + str(PAGE))) - {"c", "shift"}
    assert used == colours.keys()
    if dark:  # on white, some of the palette have less; dashes and labels say what colours say
        assert all(contrast(colour, colours["tint"]) >= 3 for colour in COLOURS if colour != INK)


def test_charts_take_the_pages_ink_and_each_optimizers_look() -> None:
    values = pd.Series([3.0, 2.0, 1.0], [1, 2, 3])
    chart = Chart("a", "epoch", "loss", [Line("one", values, "adan"), Line("two", values, "adamw")])
    draw = page_module.page().get_template("charts.html").module
    first = draw.lines(chart)
    second = draw.rows(Rows("b", "ratio", [Row("x", INK, [("y", 0.5), ("z", 9.0)])], (0.5, 1, 2)))
    for text in (first, second):
        Reader(text)
        assert "currentColor" in text
        assert INK not in text
    assert 'points="1,3 2,2 3,1"' in first
    assert 'viewBox="1 -3.12 2 2.24"' in first  # with 6 % on each side
    assert '<g style="--c:currentColor">' in second
    assert second.count('class="beyond"') == 1
    assert "Medians: x 4.75" in second


def test_long_curves_lose_points_and_not_their_ends() -> None:
    values = pd.Series(range(1000), range(1000), dtype=float)
    chart = Chart("a", "step", "loss", [Line("one", values)], most=40)
    points = chart.points(chart.lines[0]).split()
    assert len(points) == 40
    assert (points[0], points[-1]) == ("0,0", "999,999")


def test_words() -> None:
    assert words("adam_peak_mb", "MB") == "Adam peak"
    assert words("eval_top1", "%") == "validation top-1 accuracy"
    assert words("ema_test_accuracy") == "averaged weights, test accuracy"


def test_every_table_of_the_ledger_has_a_heading() -> None:
    assert {name.partition("/")[0] for name in rows.names()} == TASKS.keys()


def test_every_verdict_has_words() -> None:
    for verdict in set(rows.verdicts().values()):
        assert sum(verdict.startswith(begin) for begin in STATES) == 1, verdict


def test_notes_of_many_rows_are_written_once() -> None:
    (table,) = tables([shown(name, "verified") for name in rows.names() if name.startswith("swin/")])
    written = [note for _, notes in table.shared for note in notes]
    assert len(set(written)) == len(written) > 5
    for each in table.rows:
        about = [note for group, notes in table.shared if each in group for note in notes]
        assert sorted([*table.notes(each), *about]) == sorted(each.notes)


@pytest.mark.recipe
def test_the_pictures_in_the_docs_are_todays() -> None:
    """They change with the ledger and with the page; `make report-pictures` takes the pictures again."""
    for name, picture in PICTURES.items():
        with Image.open(ROOT / "docs" / name) as image:
            assert image.size == (picture.width, picture.height)
            assert json.loads(image.info[SHOWN]) == counts(), f"{name}: run `make report-pictures`"


def test_pictures_need_a_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"none of chromium, .* is installed; try apt-get install chromium"):
        take(tmp_path / "report.html", tmp_path)


@pytest.mark.recipe
def test_a_run_that_cannot_be_read_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several copies of a run, only the undamaged one is shown."""
    monkeypatch.setenv("ADAN_RELEASED", str(tmp_path))
    monkeypatch.setattr(rows, "names", list)
    monkeypatch.setattr(report, "RECORDS", tmp_path / "none.jsonl")
    monkeypatch.setattr(page_module, "benches", tuple)
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
    assert ", 1 own runs, " in first
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
    assert report.main([str(ROOT / "results"), "--out", str(out)]) == 0
    assert out.stat().st_size < LARGEST
    found = Reader(out.read_text()).root
    (article,) = (e for e in found.all("article") if e.attributes["id"] == "imagenet/vit_s_150_i")
    assert next(article.all("figcaption")).words.startswith("Released log")
    (section,) = (e for e in found.all("section") if e.attributes.get("id") == "curves")
    charts = list(section.all("figure"))
    assert len(charts) > 5
    log = curves.released([shown("imagenet/vit_s_150_i", "verified")])[0].log
    assert log is not None
    last = f"{log.series('eval_top1').iloc[-1]:.4g}"
    assert any(
        f"150 epochs, setting I {last}" in e.attributes.get("aria-label", "") for e in section.all("svg")
    )
