"""The report in a browser: on a desktop and a phone, in light and dark, with the mouse and the keyboard."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from repro.errors import UserError
from repro.ledger.pictures import browser
from repro.ledger.rows import ROOT
from scripts import report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
WINDOWS = {"desktop": (1280, 900), "phone": (360, 780)}


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """A headless browser."""
    found = browser()
    try:
        started = found.__enter__()
    except UserError as error:
        pytest.skip(str(error))
    yield started
    found.__exit__(None, None, None)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole report, with released logs if there are any."""
    folder = tmp_path_factory.mktemp("report")
    logs = Path(os.environ.get("ADAN_DATA", folder)).parent / "released_adan"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAN_RELEASED", os.environ.get("ADAN_RELEASED", str(logs)))
        assert report.main([str(ROOT / "results"), "--out", str(folder / "report.html")]) == 0
    return folder / "report.html"


@pytest.fixture(
    params=[(window, colours) for window in WINDOWS for colours in ("light", "dark")], ids="-".join
)
def page(request: pytest.FixtureRequest, chromium: "Browser", path: Path) -> Iterator["Page"]:
    """The report in a window; what its script complains about is an error."""
    window, colours = request.param
    width, height = WINDOWS[window]
    opened = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=colours)
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(path.as_uri())
    yield opened
    opened.close()
    assert not complaints


def shown(page: "Page") -> list[str]:
    """The rows that are visible in the ledger."""
    links = page.locator("#ledger tr[data-status]:visible th a")
    return [str(link).removeprefix("#") for link in links.evaluate_all("all => all.map(a => a.hash)")]


def test_it_fits_the_window(page: "Page") -> None:
    width, visible = page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert width == visible
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == visible


def test_axe_finds_nothing(page: "Page") -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page.locator("summary").nth(0).click()
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_colours_are_those_that_were_asked_for(page: "Page") -> None:
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")


def test_filters_work_with_the_keyboard_and_stay_in_the_address(page: "Page") -> None:
    everything = shown(page)
    task = page.locator("select[name=task]")
    task.focus()
    page.keyboard.type("BERT, fine")
    assert page.url.endswith("#task=glue")
    glue = shown(page)
    assert 0 < len(glue) < len(everything)
    assert all(name.startswith("glue/") for name in glue)
    page.keyboard.press("Tab")
    page.keyboard.type("Adan")
    assert page.url.endswith("#task=glue&optimizer=adan")
    adan = shown(page)
    assert adan == [name for name in glue if not name.endswith("_adam")]
    assert page.text_content("#shown") == f"{len(adan)} rows, {len(adan)} with a published number"
    page.reload()
    assert shown(page) == adan
    page.locator("button[type=reset]").press("Enter")
    page.wait_for_function("!location.hash.includes('=')")
    assert shown(page) == everything


def test_an_address_of_a_filter_that_does_not_exist_shows_all(page: "Page", path: Path) -> None:
    everything = shown(page)
    page.goto("about:blank")
    page.goto(f"{path.as_uri()}#task=nothing")
    assert shown(page) == everything


def test_a_rows_name_opens_all_that_is_known_of_it(page: "Page") -> None:
    article = page.locator("[id='glue/cola']")
    assert not article.is_visible()
    page.locator("#ledger a[href='#glue/cola']").click()
    article.wait_for(state="visible")
    assert "python scripts/reproduce.py glue/cola" in article.inner_text()
    box, height = article.bounding_box(), page.viewport_size
    assert box is not None
    assert height is not None
    assert 0 < box["y"] < height["height"] / 2


def test_the_first_tab_offers_to_skip(page: "Page") -> None:
    page.keyboard.press("Tab")
    box = page.locator(".skip").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    page.keyboard.press("Enter")
    assert page.url.endswith("#ledger")


def test_charts_tell_their_values(page: "Page") -> None:
    first = page.locator("#found circle").nth(3)  # beyond the axis, as another one
    first.hover()
    texts = (page.text_content(".value") or "").splitlines()
    assert first.get_attribute("data-label") in texts
    assert len(set(texts)) == len(texts) > 1
    page.mouse.move(1, 1)
    assert page.locator(".value").count() == 0
    plot = page.locator("#comparison .plot").nth(0)
    plot.focus()
    said = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
        said.append(page.text_content(".value"))
    assert said[0] == said[2] != said[1]
    assert said[0].startswith("AdamW: ")
    assert said[3].startswith("Adan: ")
    page.keyboard.press("Tab")
    assert page.locator(".value").count() == 0


def test_a_table_that_is_too_wide_scrolls_by_itself(page: "Page") -> None:
    table = page.locator("#comparison .scroll").nth(0)
    table.focus()
    wide = table.evaluate("e => e.scrollWidth - e.clientWidth")
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    assert (table.evaluate("e => e.scrollLeft") > 0) == (wide > 0)
    assert page.evaluate("document.documentElement.scrollLeft") == 0


def test_it_can_be_read_without_its_script(chromium: "Browser", path: Path) -> None:
    page = chromium.new_page(java_script_enabled=False)
    page.goto(path.as_uri())
    assert not page.locator("form").is_visible()
    assert page.locator("tr.published").first.is_visible()
    page.locator("summary").first.click()
    assert page.locator("article").first.is_visible()
    assert page.locator("#found circle title").count() > 50
    page.close()
