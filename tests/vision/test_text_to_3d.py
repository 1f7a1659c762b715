"""vision/text_to_3d.py end to end: it makes the object, continues to the bit, refuses what cannot work."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from tiny_pipelines import clip, stable_diffusion

from adan_optim import build_optimizer
from repro.interop import read_weights
from repro.ledger import rows
from repro.train.config import typed
from vision.text_to_3d import TextTo3D, main
from vision.threed import priors, products
from vision.threed.config import TextTo3DConfig
from vision.threed.diffusion import Diffusion

Run = Callable[..., tuple[int, str, str]]

SMALL = [
    "view.size=12", "scene.resolution=8", "scene.samples=12", "batch_size=2", "measure.views=4",
    "run.name=run", "tracking=none",
]  # fmt: skip
FOLDER = Path("runs/text_to_3d/run")


@pytest.fixture
def command(runner: Callable[[Any], Run], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in an empty folder, in a world of few views."""
    monkeypatch.setattr(priors, "VIEWS", 16)
    monkeypatch.setattr(products, "FRAMES", 8)
    monkeypatch.setattr(products, "CELLS", 16)
    return runner(main)


def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.recipe
def test_the_default_makes_the_object(runner: Callable[[Any], Run]) -> None:
    """A red torus in half of the steps: overlap, likeness, recognition, and what is left in the folder."""
    status, out, err = runner(main)("steps=150", "run.name=run")
    assert status == 0, err
    assert f"the object so far, after each evaluation: {FOLDER / products.NOW}" in out
    test = json.loads((FOLDER / "summary.json").read_text())["test"]
    assert test["test_iou"] > 0.8
    assert test["test_psnr"] > 18
    assert test["test_r_precision"] == 1
    evaluated = [record for record in records() if "valid_iou" in record]
    assert [record["step"] for record in evaluated] == [50, 100, 150]
    assert evaluated[-1]["valid_loss"] < evaluated[0]["valid_loss"]
    frames = imageio.imread(FOLDER / products.TURNTABLE)
    assert frames.shape == (products.FRAMES, products.SIDE, products.SIDE, 3)
    strip = np.asarray(Image.open(FOLDER / products.STRIP).convert("RGB")).astype(int)
    centre = strip.shape[1] // (2 * products.SHOWN)
    assert (strip[:, centre, 0] - strip[:, centre, 2]).max() > 60  # red from the front
    torus = strip[..., 0] - strip[..., 2] > 60
    parts = [part.any(0).sum() for part in np.array_split(torus, products.SHOWN, axis=1)]
    assert parts[2] < 0.6 * parts[0]  # a quarter turn later it is seen from the side
    mesh: Any = trimesh.load(FOLDER / products.MESH)
    assert mesh.is_watertight
    assert 0.1 < mesh.volume < 0.6  # the torus: 2 pi^2 0.45 0.17^2 = 0.26
    assert 1.0 < mesh.extents[1] < 1.5  # 2 (0.45 + 0.17)
    assert mesh.extents[0] < 0.75 * mesh.extents[1]
    curves = (FOLDER / products.CURVES).with_suffix(".svg").read_text()
    assert f"{evaluated[-1]['valid_iou']:.3g} at the end" in curves
    assert all((FOLDER / name).is_file() for name in products.FILES)


@pytest.mark.parametrize(
    "scene", ["grid", *(pytest.param(scene, marks=pytest.mark.recipe) for scene in ("hashgrid", "mlp"))]
)
def test_it_continues_to_the_bit(
    command: Run, killed_after: Callable[[int], AbstractContextManager[None]], scene: str
) -> None:
    """With occupied cells that are looked at every third step, shading and random backgrounds."""
    words = [
        *SMALL, "steps=8", "eval_every=4", f"scene.name={scene}",
        "scene.occupancy=8", "scene.occupancy_every=3",
        "scene.levels=3", "scene.entries=8", "scene.finest=32", "scene.width=8", "scene.depth=1",
        "scene.background=learned", "view.ambient=[0.1,1.0]", "view.textureless=0.3", "orientation=0.01",
        "view.random_background=0.5", "entropy=0.01", "run.checkpoint_every=1",
    ]  # fmt: skip
    status, _, err = command(*words, "run.name=whole")
    assert status == 0, err
    with killed_after(5):
        assert command(*words, "run.name=killed")[0] == 130
    status, out, err = command(*words, "run.name=killed")
    assert status == 0, err
    assert "continuing runs/text_to_3d/killed at step 5" in out
    whole, parts = (Path(f"runs/text_to_3d/{name}/metrics.jsonl").read_text() for name in ("whole", "killed"))
    assert whole == parts
    ours, theirs = (read_weights(Path(f"runs/text_to_3d/{name}"))[0] for name in ("whole", "killed"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_any_pipeline_of_diffusers(command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny Stable Diffusion and CLIP on disk: first with normals for latents, then through the encoder."""
    stable_diffusion(tmp_path / "pipeline")
    clip(tmp_path / "clip")
    phases: list[str] = []

    def noted(name: str) -> Callable[[Diffusion, torch.Tensor], torch.Tensor]:
        method = getattr(Diffusion, name)

        def call(self: Diffusion, pictures: torch.Tensor) -> torch.Tensor:
            phases.append(name)
            return method(self, pictures)

        return call

    for name in ("encode", "latents"):
        monkeypatch.setattr(Diffusion, name, noted(name))
    Path("captions.txt").write_text("a cat\n\na red dog\n")
    words = [
        *SMALL, "prompt=a cat", "steps=5", "eval_every=5", "prior.name=stable_diffusion",
        f"prior.path={tmp_path}/pipeline", "view.normals=0.4", "prior.guidance=100", "orientation=0.01",
        f"measure.clip={tmp_path}/clip", "measure.captions=captions.txt",
    ]  # fmt: skip
    status, _, err = command(*words)
    assert status == 0, err
    assert phases[:5] == ["latents", "latents", "encode", "encode", "encode"]
    test = json.loads((FOLDER / "summary.json").read_text())["test"]
    assert 0 <= test["test_r_precision"] <= 1
    assert "test_iou" not in test  # nobody knows what a cat looks like here


def test_parts_have_their_own_learning_rates() -> None:
    """As the rows state them: the hash encoding has ten times that of the networks."""
    for name, lr in (("dreamfusion", 5e-3), ("dreamfusion_adam", 1e-3)):
        recipe = rows.load(f"text_to_3d/{name}", ["scene.entries=8", "scene.finest=32"])
        model = TextTo3D(typed(recipe.config, TextTo3DConfig), synthetic=True).initial()
        optimizer = build_optimizer(model, recipe.config["optimizer"])
        found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for key, p in model.named_parameters():
            assert found[id(p)] == pytest.approx(10 * lr if "encoding" in key else lr), key


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prompt=a pink torus"], "prompt='a pink torus': without a text-to-image model .*red, green"),
        (["prompt=''"], "prompt is empty"),
        (["prior.name=unet"], "prior.path is not set: prior.name=unet needs the folder `pipeline`"),
        (["prior.name=stable_diffusion"], "prior.path is not set: .* a folder, or a name on the Hugging"),
        (["prior.name=dalle"], "prior.name=dalle: must be one of analytic, unet, stable_diffusion"),
        (["scene.name=mesh"], "scene.name=mesh: must be one of grid, hashgrid, mlp"),
        (["scene.name=mlp", "smoothness=0.1"], "smoothness=0.1: is for scene.name=grid, not mlp"),
        (["view.fov=[40]"], r"view.fov=\[40.0\]: must be two numbers from 1 to 120"),
        (["view.radius=[0.5,3]"], r"view.radius=\[0.5, 3.0\]: must be two numbers from 1 to inf"),
        (["prior.times=[0.9,0.1]"], r"prior.times=\[0.9, 0.1\]: .* the lower one first"),
        (["view.normals=0.2"], "view.normals=0.2: is for prior.name=stable_diffusion; set it to 0"),
        (["view.textureless=2"], "view.textureless=2.0: is a share"),
        (["steps=null"], "steps is not set"),
        (["scene.samples=0"], "scene.samples=0: must be at least 1"),
        (["scene.bound=0"], "scene.bound=0.0: must be above 0"),
        (
            ["measure.clip=nowhere", "measure.captions=absent.txt"],
            "measure.captions=absent.txt: No such file",
        ),
        (["measure.clip=nowhere"], "measure.captions is not set: CLIP needs other captions"),
    ],
)
def test_bad_input(command: Run, words: list[str], message: str) -> None:
    status, _, err = command(*words)
    assert status == 2
    assert re.match(f"error: {message}", err), err
    assert err.count("\n") == 1
    assert not Path("runs/text_to_3d/run/metrics.jsonl").exists()
