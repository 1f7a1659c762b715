"""What mkdocs needs to know of this repository: its pages link each other by their paths in it, as on GitHub.

The site has the same tree. The front page is README.md, what follows is every page of docs/ in the order of
its index, docs/README.md, and whatever those link: a page of results/ is a page, source code is shown.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
INDEX = "docs/README.md"
DATA = (".css", ".csv", ".jsonl", ".png", ".svg")  # copied; any other file becomes a page
CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]*`", flags=re.DOTALL | re.MULTILINE)
LABEL = re.compile(
    r"\[[\w./]+\.(?:md|ipynb)\]\(([\w./]+\.(?:md|ipynb))(#[\w-]+)?\)"
)  # a link whose text is a path, too
ENTRY = re.compile(r"^\| \[`([\w.]+)`\]\(\.\./optim/([\w/]+)\.py\).*$", flags=re.MULTILINE)


class Shown(File):
    """A file of the repository that is a page of the site, Markdown or not."""

    def is_documentation_page(self) -> bool:
        """Return whether it becomes a page, which it always does."""
        return True


def on_config(config: MkDocsConfig) -> None:
    """Make the navigation of the index: a section for each heading, with the pages that its table links."""
    config.nav = [{"Home": "README.md"}, INDEX]
    for section in (ROOT / INDEX).read_text().split("\n## ")[1:]:
        heading, _, table = section.partition("\n")
        words = heading.removeprefix("... ")
        pages = [path for path in links(INDEX, table) if path.suffix in (".md", ".ipynb")]
        config.nav.append({words[0].upper() + words[1:]: [str(path) for path in dict.fromkeys(pages)]})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Put in place of docs/ the files of the repository that can be reached by links."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    here = sorted(path.relative_to(ROOT) for path in (ROOT / "docs").iterdir())
    todo = [Path("README.md"), *(path for path in here if path.suffix in (".css", ".md"))]
    for path in todo:  # which grows
        place = InclusionLevel.INCLUDED if path.parent.name == "docs" else InclusionLevel.NOT_IN_NAV
        make = File if path.suffix in DATA else Shown
        file = make(str(path), str(ROOT), config.site_dir, config.use_directory_urls, inclusion=place)
        files.append(file)
        if path.suffix == ".md":
            found = links(str(path), CODE.sub("", (ROOT / path).read_text()))
            todo += [each for each in dict.fromkeys(found) if each not in todo and (ROOT / each).is_file()]
        elif make is Shown:
            file.content_string = in_markdown(path)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Give links the titles of pages, and docs/api.md docstrings in place of its tables."""
    source = page.file.src_uri
    if source in ("README.md", INDEX):
        page.meta["hide"] = ["navigation"]  # each is a section of one page
    if source == "docs/api.md":
        return docstrings(markdown)
    return LABEL.sub(lambda link: f"[{title(source, link[1])}]({link[1]}{link[2] or ''})", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Make of the two colons before a literal block, which are for Sphinx, one."""
    return html.replace("::</p>", ":</p>")


def links(page: str, text: str) -> list[Path]:
    """Return the files that a page links, by their paths in the repository."""
    names = re.findall(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)", text)
    return [Path(os.path.normpath(Path(page).parent / name)) for name in names]


def title(page: str, link: str) -> str:
    """Return the title of the page that a page links; if there is none, the link, which is then reported."""
    path = Path(os.path.normpath(Path(page).parent / link))
    return in_markdown(path).partition("\n")[0].removeprefix("# ") if (ROOT / path).is_file() else link


def docstrings(markdown: str) -> str:
    """Return the page with a line for mkdocstrings in place of each line of a table."""

    def named(row: re.Match[str]) -> str:
        return f"::: {row[2].replace('/', '.')}.{row[1].rpartition('.')[2]}\n"

    return ENTRY.sub(named, re.sub(r"^\| name \|.*\n\|---.*\n", "", markdown, flags=re.MULTILINE))


def in_markdown(path: Path) -> str:
    """Return a page in Markdown: a notebook with what it printed, of other files the text."""
    text = (ROOT / path).read_text()
    if path.suffix == ".md":
        return text
    if path.suffix == ".ipynb":
        return notebook(json.loads(text))
    return f"# {path}\n\n{fenced(text, path.suffix[1:])}"


def notebook(cells: dict[str, Any]) -> str:
    """Return the cells of a notebook in Markdown."""
    parts = []
    for cell in cells["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else fenced(source, "python"))
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![](data:image/png;base64,{data['image/png'].strip()})")
            else:
                parts.append(fenced("".join(output.get("text") or data.get("text/plain", ())), "text"))
    return "\n\n".join(parts)


def fenced(text: str, language: str) -> str:
    """Return a block of code."""
    return f"````{language}\n{text.rstrip()}\n````"
