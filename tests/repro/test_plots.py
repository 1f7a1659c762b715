"""The one style of figures."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import color_sequences, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from adan_optim.registry import OPTIMIZERS
from benchmarks.comparison.design import OPTIMIZERS as COMPARED
from repro.errors import UserError
from repro.ledger.rows import ROOT
from repro.plots import (
    COLOURS,
    DPI,
    LOOKS,
    MOST,
    QUIET,
    STYLE,
    WIDTH,
    caption,
    finish,
    look,
    looks,
    panels,
    quantity,
    save,
    save_pictures,
)


def figure(series: int = 2, note: str = "Mean of 3 seeds.") -> Figure:
    with rc_context(STYLE):
        made, [axes] = panels(1)
        for number, name in zip(range(series), LOOKS, strict=False):
            axes.plot([0, 1, 2], [3, 1, number], **look(name).points, label=name)
        axes.set_title("a panel")
        finish(made, "Which ends lower?", note)
    return made


def test_the_colours_are_okabe_and_itos() -> None:
    theirs = {to_hex(colour).upper() for colour in color_sequences["okabe_ito"]}
    assert {*COLOURS[:-1]} == theirs - {"#000000", "#F0E442"}


def test_every_optimizer_has_a_look_of_its_own() -> None:
    assert {*OPTIMIZERS, *COMPARED} <= {*LOOKS}
    for code in ("line", "points"):
        codes = [tuple(getattr(each, code).values()) for each in LOOKS.values()]
        assert len({*codes}) == len(codes)
    assert len({(each.colour, each.marker) for each in LOOKS.values()}) == len(LOOKS)  # without lines
    assert QUIET not in COLOURS


def test_the_looks_stay() -> None:
    """Figures made at different times agree: what is published cannot be recoloured by a new optimizer."""
    adan, adamw = look("adan"), look("adamw")
    assert (adan.colour, adan.marker, adan.dashes) == ("#D55E00", "D", "-")
    assert (adamw.colour, adamw.marker, adamw.dashes) == ("#010203", "o", "-")
    assert {look(f"adan_{kind}").colour for kind in ("bf16", "int8")} == {adan.colour}


def test_series_of_a_figure() -> None:
    found = looks({"a": "adan", "a, lr=2": "adan", "mine": None, "w": "adamw", "other": "no_such"})
    assert (found["a"], found["w"]) == (look("adan"), look("adamw"))
    assert found["a, lr=2"].colour == look("adan").colour
    assert not {found["mine"].colour, found["other"].colour} & {look("adan").colour, look("adamw").colour}
    assert len({(each.colour, each.dashes) for each in found.values()}) == 5
    assert [*found] == ["a", "a, lr=2", "mine", "w", "other"]
    many = looks({str(number): "adan" for number in range(9)})
    assert len({(each.colour, each.dashes) for each in many.values()}) == MOST + 1  # and grey
    assert [each.label("x") for each in many.values()] == ["x"] * MOST + [None] * 2


def test_both_files_and_the_same_bytes(tmp_path: Path) -> None:
    made = figure()
    paths = save(made, tmp_path / "new" / "a.png")
    assert paths == [tmp_path / "new" / "a.png", tmp_path / "new" / "a.svg"]
    assert sorted(paths[0].parent.iterdir()) == paths  # nothing is left of what was written before
    with Image.open(paths[0]) as image:
        assert image.width == WIDTH * DPI
        assert "Software" not in image.info
        assert np.asarray(image).std() > 0
    svg = paths[1].read_text()
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "Which ends lower?" in svg  # text is text
    assert "<dc:date>" not in svg
    for again in (save(made, tmp_path / "b"), save(figure(), tmp_path / "c.svg")):
        assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_no_panel_with_too_many_series(tmp_path: Path) -> None:
    save(figure(MOST), tmp_path / "a")
    with pytest.raises(ValueError, match=f"{MOST + 1} series in the panel 'a panel': .* split the panel"):
        save(figure(MOST + 1), tmp_path / "b")
    assert not list(tmp_path.glob("b*"))


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.pdf: a figure is written as \.png and \.svg"):
        save(figure(), tmp_path / "a.pdf")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the figure"):
        save(figure(), tmp_path / "file" / "a.png")


def test_committed_figures_are_small() -> None:
    figures = [path for suffix in ("png", "svg") for path in (ROOT / "results").rglob(f"*.{suffix}")]
    assert len(figures) > 10
    most = {".png": 200_000, ".svg": 150_000}
    assert not [str(path) for path in figures if path.stat().st_size > most[path.suffix]]


def test_rows_of_pictures(tmp_path: Path) -> None:
    red, blue = (np.tile(np.array(colour, float), (3, 8, 8, 1)) for colour in ((1, 0, 0), (0, 0, 1)))
    for again in ("a", "b"):
        save_pictures(
            {"a $red$ one": red, "blue": blue}, tmp_path / f"{again}.png", "Colours", ["x", "y", "z"]
        )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == WIDTH * DPI
    areas = [(np.abs(pixels - colour).max(2) < 30) for colour in ([255, 0, 0], [0, 0, 255])]
    assert all((np.diff(area.any(0).astype(int)) == 1).sum() == 3 for area in areas)  # three in a row, apart
    first, second = (np.flatnonzero(area.any(1)) for area in areas)
    assert first.max() < second.min()


def test_captions() -> None:
    made = figure()
    assert caption(made) == "Which ends lower? (a panel)"
    made.axes[0].set(xlabel="step", ylabel=quantity("loss", "nats", "lower is better"))
    assert caption(made) == "Which ends lower? (loss, nats over step; a panel)"


def test_panels() -> None:
    made, axes = panels(5)
    assert len(axes) == len(made.axes) == 5
    assert made.get_size_inches()[0] == panels(1)[0].get_size_inches()[0] == WIDTH


@pytest.mark.parametrize("series", [0, 2])
def test_title_note_and_legend_do_not_overlap(series: int) -> None:
    made = figure(series, "A note that is so long that it needs more than one line below the figure. " * 3)
    renderer = FigureCanvasAgg(made).get_renderer()
    made.draw_without_rendering()
    below = made.legends[0] if series else made._supxlabel
    top, bottom = made._suptitle.get_window_extent(renderer), below.get_window_extent(renderer)
    panel = made.axes[0].get_tightbbox(renderer)
    assert bottom.y0 >= 0
    assert bottom.y1 <= panel.y0
    assert panel.y1 <= top.y0
    assert max(top.x1, bottom.x1) <= made.bbox.x1
