"""Screenshots of the report for docs/, taken with a headless browser."""

import json
import shutil
import subprocess
import tempfile
from html import escape
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from repro.errors import UserError
from repro.ledger.html import counts

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COUNTS = "counts"  # metadata key of a picture: the numbers at the top of the page, as JSON
LIGHT, DARK = "preferredColorScheme=1", "preferredColorScheme=0"
# name: (width, height), section of the page ("": all), colours
PICTURES = {
    "report.png": ((1280, 1420), "", LIGHT),
    "report-curves.png": ((1280, 1640), "curves", LIGHT),
    "report-phone.png": ((390, 900), "", DARK),
}


def take(report: Path, folder: Path) -> list[str]:
    """Write PICTURES of a report to `folder` and return their names.

    Raises:
        UserError: there is no browser, or it fails.
    """
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        raise UserError(
            f"--pictures: none of {', '.join(BROWSERS)} is installed; try apt-get install chromium"
        )
    numbers = PngInfo()
    numbers.add_text(COUNTS, json.dumps(dict(counts())))
    with tempfile.TemporaryDirectory() as temporary:
        for name, (size, part, colours) in PICTURES.items():
            width, height = size
            shot, frame = Path(temporary) / name, Path(temporary) / "frame.html"
            text = report.read_text()
            if part:
                text = text.replace(
                    "</head>", f"<style>body > :not(#{part}) {{ display: none }}</style></head>"
                )
            # in a frame, because a window cannot be as narrow as a phone
            frame.write_text(
                f'<body style="margin: 0"><iframe width={width} height={height} scrolling=no '
                f'style="border: 0" srcdoc="{escape(text)}"></iframe>'
            )
            command = [
                program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--blink-settings={colours}", f"--window-size={max(width, 800)},{height + 200}",
                f"--screenshot={shot}", frame.as_uri(),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            if not shot.exists():
                raise UserError(f"--pictures: {program} took no picture: {done.stderr.strip()[-200:]}")
            with Image.open(shot) as image:
                picture = image.convert("RGB").crop((0, 0, width, height))
                picture.save(folder / name, optimize=True, pnginfo=numbers)
    return list(PICTURES)
