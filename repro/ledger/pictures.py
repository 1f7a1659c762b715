"""Pictures of the report for docs/report.md, taken with a headless browser."""

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from repro.errors import UserError
from repro.ledger.html import counts

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SHOWN = "shown"  # metadata key of a picture: what determines its content, as JSON


@dataclass(frozen=True)
class Picture:
    """A view of the page: the size of the window, the colours, and the part of the page."""

    width: int
    height: int
    colours: Literal["light", "dark"] = "light"
    part: str = ""  # of the address, behind the #


PICTURES = {
    "report.png": Picture(1280, 1000),
    "report-row.png": Picture(1280, 760, part="imagenet/vit_s_300"),
    "report-curves.png": Picture(1280, 1000, "dark", "curves"),
    "report-phone.png": Picture(390, 844, "dark", "task=imagenet&optimizer=adan&status=own"),
    "report-phone-row.png": Picture(390, 844, part="wikitext103/adan_100k"),
}


@contextmanager
def browser() -> Iterator["Browser"]:
    """Yield a headless browser: one of BROWSERS, or else the one that playwright has installed.

    Raises:
        UserError: there is none, or playwright is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise UserError("--pictures: playwright is not installed; try pip install playwright") from error
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            raise UserError(
                f"--pictures: none of {', '.join(BROWSERS)} is installed; try apt-get install chromium"
            )
        started = playwright.chromium.launch(executable_path=found)
        try:
            yield started
        finally:
            started.close()


def take(report: Path, folder: Path) -> list[str]:
    """Write PICTURES of a report to `folder` and return their names.

    Raises:
        UserError: there is no browser.
    """
    with browser() as started:
        shown = PngInfo()
        shown.add_text(SHOWN, json.dumps(counts()))
        for name, picture in PICTURES.items():
            page = started.new_page(
                viewport={"width": picture.width, "height": picture.height}, color_scheme=picture.colours
            )
            page.goto(f"{report.resolve().as_uri()}#{picture.part}")
            with Image.open(io.BytesIO(page.screenshot())) as image:
                few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            few.save(folder / name, optimize=True, pnginfo=shown)
            page.close()
    return list(PICTURES)
