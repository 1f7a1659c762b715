"""scripts/docs.py: the tables that are made from code."""

import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest

from repro.errors import UserError
from repro.ledger import rows

DOCS = runpy.run_path(str(rows.ROOT / "scripts" / "docs.py"))


def test_a_row_that_was_never_verified_is_counted_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new row has a file in configs/paper, but no entry in verify.json."""
    verified = json.dumps({"rows": {"imagenet/vit_s_150_i": {"verdict": "verified"}}})
    (tmp_path / "verify.json").write_text(verified)
    monkeypatch.setattr(rows, "VERIFIED", tmp_path / "verify.json")
    monkeypatch.setattr(rows, "names", lambda: ["imagenet/vit_s_150_i", "imagenet/vit_s_150"])
    assert DOCS["ledger"]().splitlines()[2:] == ["| `imagenet` | ViT-S | 2 | 2 | 1 | 2 |"]


def test_columns_of_a_table_in_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DOCS["copied"].__globals__, "ROOT", tmp_path)
    (tmp_path / "results" / "x").mkdir(parents=True)
    tables = "| a | b |\n|---|---|\n| 0 | 0 |\n\n| a | b | c |\n|---|---|---|\n| 1 |  | 3 |\n\n| 4 |\n"
    (tmp_path / "results" / "x" / "README.md").write_text(f"# X\n\na | b\n\n{tables}")
    assert DOCS["copied"]("x", "c", "b") == "| c | b |\n|---|---|\n| 3 |  |"
    with pytest.raises(UserError, match=r"README\.md: has no table with the columns a, d"):
        DOCS["copied"]("x", "a", "d")


# ---- the walk-through


def adam(square: float, decay: float) -> list[tuple[float, float]]:
    """Return the steps of AdamW by its definition, in Python floats."""
    x, m, v = 3.0, 0.0, 0.0
    seen = []
    for t in range(1, 102):
        seen.append((x, x**4 + 3 * x**3 + 2 + square * x**2))
        g = 4 * x**3 + 9 * x**2 + 2 * square * x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x -= 0.1 * decay * x + 0.1 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return seen


@pytest.mark.parametrize(("title", "square", "decay"), [("Adam", 0.0, 0.0), ("AdamW", 0.5, 0.1)])
def test_the_walk_through(title: str, square: float, decay: float) -> None:
    ours = DOCS["walk"](*DOCS["WALKS"][title])
    assert len(ours) == 101
    for found, expected in zip(ours, adam(square, decay), strict=True):
        assert found == pytest.approx(expected, rel=1e-6)


def test_the_numbers_that_the_sources_printed() -> None:
    """Their epoch k is printed after step k + 1."""
    adam, adamw = (DOCS["walk"](*DOCS["WALKS"][title]) for title in ("Adam", "AdamW"))
    printed = {1: (2.9000, 145.90), 11: (1.9553, 39.04), 51: (0.4251, 2.26), 91: (0.2627, 2.06)}
    for step, (x, value) in printed.items():
        assert (round(adam[step][0], 4), round(adam[step][1], 2)) == (x, value)
    assert (round(adamw[1][0], 4), round(adamw[1][1], 2)) == (2.87, 144.88)
    assert (round(adamw[91][0], 4), round(adamw[91][1], 2)) == (0.0730, 2.00)


def test_what_the_docs_say_of_the_walk_through() -> None:
    def end(name: str, **options: Any) -> float:
        return DOCS["walk"](name, options, 0.0)[-1][0]

    assert end("adamw", weight_decay=0.0) > 0 > -1 > end("adamw", weight_decay=0.0, betas=(0.98, 0.999))
    assert end("adan", betas=(0.9, 0.92, 0.99)) > 0 > -1 > end("adan")
    f = lambda x: x**4 + 3 * x**3 + 2  # noqa: E731
    assert (round(f(-2.25), 3), round(f(2.7272), 2), round(f(-1.891), 2)) == (-6.543, 118.17, -5.5)
