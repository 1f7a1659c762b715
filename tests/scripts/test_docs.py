"""scripts/docs.py: the tables that are made from code."""

import json
import runpy
from pathlib import Path

import pytest

from repro import ledger


def test_a_row_that_was_never_verified_is_counted_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when somebody adds a row: there is a file in configs/paper, but nothing of it in verify.json."""
    monkeypatch.syspath_prepend(ledger.ROOT / "scripts")
    rows = runpy.run_path(str(ledger.ROOT / "scripts" / "docs.py"))["rows"]
    verified = json.dumps({"rows": {"imagenet/vit_s_150_i": {"verdict": "verified"}}})
    (tmp_path / "verify.json").write_text(verified)
    monkeypatch.setattr(ledger, "VERIFIED", tmp_path / "verify.json")
    monkeypatch.setattr(ledger, "names", lambda: ["imagenet/vit_s_150_i", "imagenet/vit_s_150"])
    assert rows().splitlines()[2:] == ["| `imagenet` | ViT-S | 2 | 2 | 1 | 2 |"]
