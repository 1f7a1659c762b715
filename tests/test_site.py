"""The site: every page is in its navigation, every public name in its reference, and a dead link fails."""

import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mkdocs.config import load_config
from mkdocs.structure.files import Files, get_files
from mkdocs.structure.nav import Navigation, get_navigation

import adan_optim

ROOT = Path(__file__).resolve().parents[1]
hooks = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "hooks.py")))


def build(root: Path, site: Path) -> "subprocess.CompletedProcess[str]":
    """Run the command of `make site`."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def planned() -> tuple[Files, Navigation]:
    """The files of the site, and its navigation."""
    config = load_config(str(ROOT / "mkdocs.yml"))
    config = config.plugins.on_config(config)
    files = config.plugins.on_files(get_files(config), config=config)
    return files, get_navigation(files, config)


def test_every_page_is_in_the_navigation(planned: tuple[Files, Navigation]) -> None:
    _, navigation = planned
    pages = [page.file.src_uri for page in navigation.pages]
    assert pages[:2] == ["README.md", "docs/README.md"]
    assert len(pages) == len(set(pages))
    ours = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert ours | {"CONTRIBUTING.md"} <= set(pages)
    assert [section.title for section in navigation.items[2:4]] == [
        "Use an optimizer",
        "Rerun a published result",
    ]


def test_files_are_those_that_pages_link(planned: tuple[Files, Navigation]) -> None:
    files, _ = planned
    found = {file.src_uri: file for file in files}
    assert {"results/lab/README.md", "results/lab/multiplier.png", "LICENSE", "docs/site.css"} <= set(found)
    assert "docs/hooks.py" not in found
    assert found["results/lab/multiplier.png"].dest_uri == "results/lab/multiplier.png"
    assert found["examples/plain.py"].dest_uri == "examples/plain.html"
    shown = found["examples/plain.py"].content_string
    assert (ROOT / "examples" / "plain.py").read_text().rstrip() in shown


def test_the_reference_has_every_public_name() -> None:
    page = hooks.docstrings((ROOT / "docs" / "api.md").read_text())
    assert "|" not in page
    places = [line[4:].rpartition(".") for line in page.splitlines() if line.startswith("::: ")]
    found = {name: getattr(importlib.import_module(module), name) for module, _, name in places}
    public = {name: getattr(adan_optim, name) for name in adan_optim.__all__}
    registered = {cls.__name__: cls for cls in adan_optim.OPTIMIZERS.values()}
    tables = {"CARDS", "OPTIMIZERS"}  # named in the text
    assert {name for name in public if found.get(name) is not public[name]} == tables
    assert registered.items() <= found.items()
    assert set(found) - set(public) == {"register", "trainer_arguments"}


def test_a_link_that_is_named_by_its_path_has_the_title() -> None:
    link = hooks.LABEL.fullmatch("[docs/lab.md](docs/lab.md#claims)")
    assert link
    assert (link[1], link[2]) == ("docs/lab.md", "#claims")
    assert hooks.title("README.md", "docs/lab.md") == "The claims lab"
    assert hooks.title("docs/optim.md", "lab.md") == "The claims lab"
    assert not hooks.LABEL.search("[the lab](docs/lab.md)")


@pytest.mark.slow
def test_it_builds(tmp_path: Path) -> None:
    site = tmp_path / "site"
    run = build(ROOT, site)
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr
    reference = (site / "docs" / "api.html").read_text()
    assert '<h3 id="adan_optim.adan.Adan" class="doc doc-heading">' in reference
    assert "exp_avg_diff" in reference  # the formula
    assert "decay factors of gradient, gradient difference" in reference  # an argument
    assert "::</p>" not in reference
    assert "claims lab" in (site / "search" / "search_index.json").read_text()
    sources = "".join(path.read_text() for path in site.rglob("*.html"))
    fetched = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//[^"]*"', sources)
    assert [tag for tag in fetched if 'rel="canonical"' not in tag] == []


@pytest.mark.slow
def test_what_makes_it_fail(tmp_path: Path) -> None:
    """A link to a file, or to a heading, that does not exist, and a page that the index has not."""
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "optim").mkdir()
    for name in ("hooks.py", "site.css"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs")
    pages = {
        "README.md": "# Home\n\n[index](docs/README.md)\n",
        "docs/README.md": "# How?\n\n## ... use it\n\n| how | page |\n|---|---|\n| so | [a.md](a.md) |\n",
        "docs/a.md": "# A\n\n[here](#part), [code](../code.py)\n\n## Part\n",
        "code.py": "print(1)\n",
    }
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
    assert build(tmp_path, tmp_path / "site").returncode == 0
    assert "print" in (tmp_path / "site" / "code.html").read_text()

    (tmp_path / "docs" / "a.md").write_text("# A\n\n[x](../code.txt) [y](#parts) [z](README.md#whose)\n")
    (tmp_path / "docs" / "orphan.md").write_text("# Orphan\n")
    run = build(tmp_path, tmp_path / "site")
    assert run.returncode == 1
    for what in ("docs/orphan.md", "'../code.txt'", "'#parts'", "'README.md#whose'"):
        assert what in run.stderr
    assert "Aborted with 4 warnings" in run.stdout
