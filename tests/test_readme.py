"""The README and the docs keep their word: their Python runs, their commands and files exist."""

import re
from pathlib import Path

import pytest
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


# The Python of frameworks.md is lines of examples/, which tests/frameworks compares and runs.
@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "frameworks.md"], ids=lambda page: page.name)
def test_python_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"model": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(block, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_targets_exist(page: Path) -> None:
    text = page.read_text()
    files = set(re.findall(r"python ((?:\w+/)+\w+\.py)", text)) | set(
        re.findall(r"`((?:\w+/)+\w+\.\w+)`", text)
    )
    files |= {f"{page.parent.relative_to(ROOT)}/{link}" for link in re.findall(r"\]\(([^):#]+)\)", text)}
    assert not [name for name in sorted(files) if not (ROOT / name).exists()]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", text)) <= targets
