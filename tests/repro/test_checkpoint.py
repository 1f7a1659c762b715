"""Checkpoints against damage, full disks and foreign models."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from repro import checkpoint
from repro.errors import UserError

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
        (lambda path: (path.parent / "manifest.json").write_text("{"), "manifest.json is missing or unread"),
    ],
)
def test_damage_is_named_and_the_one_before_used(tmp_path: Path, damage, named) -> None:  # type: ignore[no-untyped-def]
    old, new = save(tmp_path, 1), save(tmp_path, 2)
    warnings: list[str] = []
    assert checkpoint.newest(tmp_path, warnings.append) == new
    damage(new / checkpoint.MODEL)
    assert checkpoint.newest(tmp_path, warnings.append) == old
    (line,) = warnings
    assert str(new) in line
    assert pytest.importorskip("re").search(named, line)
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


def test_load_weights_from_folder_and_file(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    for source in (folder, folder / checkpoint.MODEL):
        model = nn.Linear(2, 2)
        checkpoint.load_weights(model, "net", str(source))
        torch.testing.assert_close(
            dict(model.state_dict()), checkpoint_tensors(folder / checkpoint.MODEL), rtol=0, atol=0
        )


def checkpoint_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        (nn.Linear(2, 3), r"its weight has shape \[2, 2\], here it is \[3, 2\]"),
        (nn.Linear(2, 2, bias=False), "its bias has no place here"),
        (nn.Sequential(nn.Linear(2, 2)), "it has no 0.weight"),
    ],
)
def test_weights_of_another_model(tmp_path: Path, model: nn.Module, difference: str) -> None:
    folder = save(tmp_path, 1)
    with pytest.raises(UserError, match=rf"holds another model \(net\), not other: {difference}"):
        checkpoint.load_weights(model, "other", str(folder))


def test_unusable_sources(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        checkpoint.load_weights(nn.Linear(2, 2), "net", str(tmp_path / "none"))
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match="cannot read weights"):
        checkpoint.load_weights(nn.Linear(2, 2), "net", str(tmp_path / "text.safetensors"))
    with pytest.raises(UserError, match="not a usable checkpoint"):
        checkpoint.load_weights(nn.Linear(2, 2), "net", str(tmp_path))


def test_manifest_is_json(tmp_path: Path) -> None:
    json.loads((save(tmp_path, 1) / checkpoint.MANIFEST).read_text())
