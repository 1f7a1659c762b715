"""CLIP's similarities, of a tiny model with random weights on disk, against transformers' own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import clip
from torchvision.transforms.v2.functional import to_pil_image
from transformers import CLIPModel, CLIPProcessor

from repro.errors import UserError
from vision.threed.clip import Clip

CAPTIONS = ["a red torus", "a small blue chair", "a cat"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model, saved."""
    clip(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("side", "atol"), [(16, 1e-5), (24, 0.02)])  # PIL rounds the pixels of 24 to 16
def test_it_is_that_of_transformers(
    folder: Path, side: int, atol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits over their scale, of pictures as PIL has them; the size of batches changes nothing."""
    images = (torch.rand(5, 3, side, side) * 255).round() / 255
    model: Any = CLIPModel.from_pretrained(folder).eval()
    processor: Any = CLIPProcessor.from_pretrained(folder)
    inputs = processor(
        text=CAPTIONS, images=[to_pil_image(image) for image in images], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**inputs).logits_per_image / model.logit_scale.exp()
    clip = Clip.load(str(folder))
    found = clip.similarity(images, CAPTIONS)
    assert found.shape == (5, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    torch.testing.assert_close(Clip.load(str(folder)).similarity(images, CAPTIONS, batch_size=2), found)
    monkeypatch.setattr(clip.model, "get_text_features", None)  # each caption is read once
    torch.testing.assert_close(clip.similarity(images[:1], CAPTIONS[1::-1]), found[:1, [1, 0]])


def test_what_does_not_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line: for a caption that is too long, weights that are missing, and a model out of reach."""
    images = torch.rand(1, 3, 16, 16)

    def refused(model: Path | str, caption: str = "a cat") -> str:
        with pytest.raises(UserError) as caught:
            Clip.load(str(model)).similarity(images, [caption])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert refused(folder, "red " * 11) == f"caption={'red ' * 11!r}: has 13 tokens, {folder} reads 12"
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["text_projection.weight"]
    save_file(weights, path, {"format": "pt"})
    start = f"{folder}: a CLIPModel and its CLIPProcessor cannot be read from this folder ("
    assert refused(folder) == f"{start}missing weights, such as text_projection.weight)"
    path.unlink()
    assert refused(folder).startswith(start)
    assert refused(folder / "none").startswith(f"{folder}/none: no such folder; name one, or a model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refused("nobody/nothing").startswith("nobody/nothing: no such folder, and a CLIPModel and its ")
