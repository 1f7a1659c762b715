"""Checkpoints against damage, full disks and foreign models."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import nn

from repro.errors import UserError
from repro.interop import read_weights
from repro.train import checkpoint

ABOUT = {"model": "net", "parameters": 6, "best": None}


def save(root: Path, step: int) -> Path:
    def write(path: Path) -> None:
        save_file(nn.Linear(2, 2).state_dict(), path / checkpoint.MODEL, {"model": "net"})
        (path / "progress.json").write_text("{}")

    return checkpoint.save(root, step, write, ABOUT)


def corrupt(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def test_manifest_names_every_file(tmp_path: Path) -> None:
    manifest = checkpoint.read_manifest(save(tmp_path, 7))
    assert (manifest["step"], manifest["model"], manifest["parameters"]) == (7, "net", 6)
    assert set(manifest["files"]) == {checkpoint.MODEL, "progress.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000007"]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (corrupt, "model.safetensors has another SHA-256"),
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), "model.safetensors has .* bytes, not"),
        (Path.unlink, "model.safetensors is missing"),
        (lambda path: (path.parent / "manifest.json").write_text("{"), r"manifest\.json: not JSON"),
    ],
)
def test_damage_is_named_and_the_one_before_used(
    tmp_path: Path, damage: Callable[[Path], object], named: str
) -> None:
    old, new = save(tmp_path, 1), save(tmp_path, 2)
    warnings: list[str] = []
    assert checkpoint.newest(tmp_path, warnings.append) == new
    damage(new / checkpoint.MODEL)
    assert checkpoint.newest(tmp_path, warnings.append) == old
    (line,) = warnings
    assert str(new) in line
    assert re.search(named, line)
    assert save(tmp_path, 2) == new  # and the damaged one can be replaced
    assert checkpoint.newest(tmp_path) == new


def test_nothing_usable(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    corrupt(save(tmp_path, 1) / checkpoint.MODEL)
    with pytest.raises(UserError, match=r"every checkpoint .* is damaged; run\.overwrite=true"):
        checkpoint.newest(tmp_path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed")])
def test_full_disk_leaves_the_old_one(tmp_path: Path, error: Exception) -> None:
    old = save(tmp_path, 1)

    def write(path: Path) -> None:
        (path / "part").write_text("half")
        raise error

    with pytest.raises(UserError, match=r"cannot write checkpoint .*step-000000002: .*make room") as caught:
        checkpoint.save(tmp_path, 2, write, ABOUT)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    assert checkpoint.damage(old) is None


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, 2, ["step-000000002"])
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["2", "4", "5"]


def test_clean_removes_leftovers(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".tmp-step-000000002").mkdir()
    (tmp_path / ".old-step-000000000").mkdir()
    checkpoint.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_read_weights_from_a_file(tmp_path: Path) -> None:
    path = save(tmp_path, 1) / checkpoint.MODEL
    weights, found = read_weights(path)
    assert found.model == "net"
    assert {name: tuple(x.shape) for name, x in weights.items()} == {"weight": (2, 2), "bias": (2,)}
    with pytest.raises(UserError, match="has no averaged weights"):
        read_weights(path, "ema")


@pytest.mark.parametrize(
    ("theirs", "difference"),
    [
        ({"weight": (2, 2), "bias": (2,)}, None),
        ({"weight": [3, 2], "bias": (2,)}, r"its weight has shape [3, 2], here it is [2, 2]"),
        ({"weight": (2, 2), "bias": (2,), "scale": ()}, "its scale has no place here"),
        ({"bias": (2,)}, "it has no weight"),
    ],
)
def test_first_difference(theirs: dict[str, tuple[int, ...]], difference: str | None) -> None:
    assert checkpoint.first_difference({"weight": (2, 2), "bias": (2,)}, theirs) == difference


def test_unusable_sources(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        read_weights(tmp_path / "none")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match="it is damaged, or no safetensors file"):
        read_weights(tmp_path / "text.safetensors")
    with pytest.raises(UserError, match="no checkpoint of a known kind"):
        read_weights(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has no checkpoint in it"):
        read_weights(tmp_path)


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    path = folder / checkpoint.MANIFEST
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"manifest\.json: ") as caught:
            checkpoint.read_manifest(folder)
        assert "\n" not in str(caught.value)
    path.write_bytes(content)
    assert checkpoint.damage(folder) is None


@pytest.mark.parametrize(
    ("change", "known"),
    [
        (lambda manifest: None, True),
        (lambda manifest: manifest.update(sha255="0"), False),  # a digest whose name was damaged
        (lambda manifest: manifest.update(files=[]), False),
        (lambda manifest: manifest["files"].update({checkpoint.MODEL: 3}), False),
    ],
)
def test_manifests_from_before_they_had_a_digest(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], known: bool
) -> None:
    folder = save(tmp_path, 1)
    manifest = checkpoint.read_manifest(folder)
    change(manifest)
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    assert (checkpoint.newest(tmp_path) == folder) if known else checkpoint.damage(folder)


def test_only_what_has_the_name_of_a_checkpoint_is_one(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    others = ["step-000000009-copy", ".tmp-mine", "notes"]
    for name in others:
        (root / name).mkdir(parents=True)
    (root / ".tmp-step-000000003").write_text("a file where a folder should be")
    first, second = save(root, 1), save(root, 2)
    os.rename(first, elsewhere)  # onto another disk
    first.symlink_to(elsewhere)
    checkpoint.clean(root)
    assert checkpoint.newest(root) == second
    checkpoint.prune(root, 1, [])
    assert sorted(path.name for path in root.iterdir()) == sorted([*others, second.name])
    assert checkpoint.damage(elsewhere) is None  # of a link the link alone is removed
    checkpoint.discard(root)
    assert sorted(path.name for path in root.iterdir()) == sorted(others)
