"""The pages keep their word: their Python runs, what they name and link exists, and so does what CI runs."""

import re
from pathlib import Path

import pytest
import yaml
from torch import nn

from repro.ledger import rows

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)
PLACEHOLDER = re.compile(r"\b(NAME|TABLE|ROW)\b|_NAME\.")
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


# The Python of frameworks.md is lines of examples/, which tests/frameworks compares and runs.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "frameworks.md"], ids=str)
def test_python_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"model": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(block, names)


@each_page
def test_files_and_targets_exist(page: Path) -> None:
    text = page.read_text()
    files = set(re.findall(r"python ((?:\w+/)+\w+\.py)", text)) | set(
        re.findall(r"`((?:\w+/)+\w+\.\w+)`", text)
    )
    assert not [name for name in sorted(files) if not PLACEHOLDER.search(name) and not (ROOT / name).exists()]
    assert set(re.findall(r"`?make ([a-z][a-z0-9-]*)", text)) <= TARGETS


def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title) for title in re.findall(r"(?m)^#+ (.*)$", text))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if "://" not in link and not (
            target.exists() and (not anchor or target.suffix != ".md" or anchor in headings(target))
        ):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    linked = re.findall(r"\]\((\w+\.md)\)", index)
    assert sorted(linked) == sorted({page.name for page in DOCS} - {"README.md"})  # each once


def test_the_readme_is_short_and_counts_right() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    verified = sum(verdict == "verified" for verdict in rows.verdicts().values())
    published = sum(rows.load(name).row.is_published for name in rows.names())
    found = re.search(r"has (\d+) rows, (\d+) of them with a published number\. For (\d+),", text)
    assert found
    assert [int(number) for number in found.groups()] == [len(rows.names()), published, verified]


# ---- what runs elsewhere


def test_ci_runs_what_a_contributor_can_run() -> None:
    """Each line that a workflow runs is a target of the Makefile."""
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    lines = [
        line
        for path in workflows
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        for step in job["steps"]
        for line in step.get("run", "").splitlines()
    ]
    assert lines
    assert {*lines} <= {f"make {target}" for target in TARGETS}


def test_pre_commit_has_the_ruff_of_the_tests() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (pinned,) = re.findall(r"^ruff==.*$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert [hook["additional_dependencies"] for hook in repository["hooks"]] == [[pinned], [pinned]]
