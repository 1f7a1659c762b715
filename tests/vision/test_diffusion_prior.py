"""Pipelines in diffusers' layout: a tiny Stable Diffusion against diffusers' own code, and errors."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from tiny_pipelines import network, parts, stable_diffusion
from torch import Tensor

from repro.errors import UserError
from vision.threed.analytic import Analytic
from vision.threed.cameras import Cameras, ring
from vision.threed.diffusion import Diffusion, features, paper_scale, texts
from vision.threed.shapes import render

CAPTIONS = ["a red torus", "", "a cat"]
AROUND = Cameras(
    torch.tensor([0.0, 1.6, -3.1]),
    torch.tensor([0.1, 0.2, 0.3]),
    torch.full((3,), 3.0),
    torch.full((3,), 0.7),
)
WORKS = "; what works has one UNet2DConditionModel, CLIPTextModel and CLIPTokenizer, and an AutoencoderKL"


def scheduler_of(pipeline: Any, kind: Any) -> Any:
    return kind.from_config(pipeline.scheduler.config, clip_sample=False)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_noise_is_that_of_diffusers(tmp_path: Path, prediction: str) -> None:
    """What the pipeline's UNet finds for the pipeline's embeddings, by its scheduler's arithmetic."""
    pipeline = stable_diffusion(tmp_path, prediction)
    prior = Diffusion.load(str(tmp_path))
    schedule = scheduler_of(pipeline, diffusers.DDPMScheduler)
    torch.testing.assert_close(prior.alphas, schedule.alphas_cumprod)
    noisy, times = torch.randn(3, 4, 8, 8), torch.tensor([20, 500, 980])
    found = prior.noise(noisy, times, CAPTIONS, AROUND)
    wanted = ["a red torus, front view", "", "a cat, back view"]
    embedded, _ = pipeline.encode_prompt(wanted, "cpu", 1, False)
    with torch.no_grad():
        theirs = pipeline.unet(noisy, times, embedded).sample
    for row, time in enumerate(times.tolist()):
        one = slice(row, row + 1)
        clean = schedule.step(theirs[one], time, noisy[one]).pred_original_sample
        alpha = schedule.alphas_cumprod[time]
        noise = (noisy[one] - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        torch.testing.assert_close(found[one], noise, rtol=1e-3, atol=1e-4)
    if prediction == "v_prediction":
        alphas = schedule.alphas_cumprod[times].view(-1, 1, 1, 1)
        clean = (noisy - (1 - alphas).sqrt() * found) / alphas.sqrt()
        torch.testing.assert_close(schedule.get_velocity(clean, found, times), theirs, rtol=1e-3, atol=1e-3)


def test_samples_are_those_of_diffusers(tmp_path: Path) -> None:
    """The pipeline's images with DDIM and guidance, from the same latents, through its VAE."""
    pipeline = stable_diffusion(tmp_path, "v_prediction")
    pipeline.scheduler = scheduler_of(pipeline, diffusers.DDIMScheduler)
    prior = Diffusion.load(str(tmp_path))
    torch.manual_seed(3)
    latents = torch.randn(2, 4, 8, 8)
    captions = ["a red torus", "a small green mug"]
    theirs = pipeline(captions, num_inference_steps=4, guidance_scale=5.0, latents=latents, output_type="pt")
    torch.manual_seed(3)
    prior.scheduler = pipeline.scheduler
    found = prior.sample(captions, None, 5.0, 4)
    assert found.shape == (2, 3, 16, 16)
    torch.testing.assert_close(found, theirs.images, rtol=1e-3, atol=1e-3)


def test_encode_is_the_vaes_and_has_a_gradient(tmp_path: Path) -> None:
    """Images of any size, resized and scaled; the weights get no gradient, and are in evaluation mode."""
    pipeline = stable_diffusion(tmp_path)
    prior = Diffusion.load(str(tmp_path))
    images = torch.rand(2, 3, 24, 24, requires_grad=True)
    torch.manual_seed(1)
    latents = prior.encode(images)
    resized = torch.nn.functional.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    torch.manual_seed(1)
    with torch.no_grad():
        expected = pipeline.vae.encode(2 * resized - 1).latent_dist.sample() * 0.18215
    torch.testing.assert_close(latents, expected)
    latents.square().sum().backward()
    assert images.grad is not None
    assert (images.grad != 0).float().mean() > 0.9
    assert not any(p.requires_grad for p in prior.parameters())
    assert not any(module.training for module in prior.modules())
    assert prior.decode(latents).shape == (2, 3, 16, 16)


def test_each_text_is_read_once(tmp_path: Path) -> None:
    """Views are told in words, one text is embedded once, and no caption has no view."""
    stable_diffusion(tmp_path)
    prior = Diffusion.load(str(tmp_path))
    read = []
    prior.text_encoder.register_forward_hook(lambda module, given, made: read.append(len(given[0])))
    noisy, times = torch.randn(3, 4, 8, 8), torch.full((3,), 500)
    told = prior.noise(noisy, times, ["a red torus", "a red torus", ""], AROUND)
    assert set(prior.embedded) == {"a red torus, front view", "a red torus, side view", ""}
    assert read == [3]
    assert torch.equal(prior.noise(noisy, times, ["a red torus", "a red torus", ""], AROUND), told)
    assert read == [3]
    alone = prior.noise(noisy, times, ["a red torus", "a red torus", ""], None)
    assert read == [3, 1]
    assert not torch.isclose(alone[:2], told[:2]).all()
    torch.testing.assert_close(alone[2], told[2])
    with pytest.raises(UserError, match=r"prompt='a cat .*': has 21 tokens, .* reads 12"):
        prior.noise(noisy[:1], times[:1], ["a cat on a mat on a mug on a red mug"], None)


def pixels(folder: Path, **options: Any) -> Diffusion:
    """A model of pixels that is told the camera, with a pipeline of no class of diffusers."""
    made = parts()
    made["unet"] = network(
        in_channels=3, out_channels=3, class_embed_type="projection",
        projection_class_embeddings_input_dim=4, **options,
    )  # fmt: skip
    index: dict[str, Any] = {"_class_name": "Other"}
    for name, part in made.items():
        if name != "vae":
            part.save_pretrained(folder / name)
            library = "transformers" if name in ("text_encoder", "tokenizer") else "diffusers"
            index[name] = [library, type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return Diffusion.load(str(folder))


def test_pixels_and_cameras(tmp_path: Path) -> None:
    """Without a VAE images are the samples; the UNet is told features of the camera, or zeros."""
    prior = pixels(tmp_path)
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    torch.testing.assert_close(prior.encode(images), 2 * images - 1)
    torch.testing.assert_close(prior.decode(prior.encode(images)), images)
    prior.encode(images).sum().backward()
    torch.testing.assert_close(images.grad, torch.full_like(images, 2.0))
    told: list[Tensor] = []
    prior.unet.class_embedding.register_forward_hook(lambda module, given, made: told.append(given[0]))
    noisy, times = torch.randn(3, 3, 8, 8), torch.tensor([1, 500, 999])
    prior.noise(noisy, times, CAPTIONS, AROUND)
    prior.noise(noisy, times, CAPTIONS, None)
    azimuth, elevation = AROUND.azimuth, AROUND.elevation
    expected = torch.stack([azimuth.sin(), azimuth.cos(), elevation.sin(), torch.ones(3)], 1)
    assert torch.equal(features(AROUND), expected)
    torch.testing.assert_close(told[0], expected * torch.tensor([[1.0], [0.0], [1.0]]))
    assert not told[1].any()
    assert texts(["a", ""], ring(2, 70.0, 3.0, 40.0)) == ["a, overhead view", ""]


def test_guided_samples_are_pictures_of_their_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the exact noise of the embedded world: what is clipped must not come back as noise."""
    prior = pixels(tmp_path)
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    world = Analytic(8, 64, (-10, 60), 3.0, 40.0)
    prior.scheduler, prior.alphas, world.alphas = (scheduler, *[scheduler.alphas_cumprod] * 2)
    monkeypatch.setattr(prior, "noise", world.noise)
    captions = [caption for caption in ("a small yellow cone", "a red torus") for _ in range(4)]
    cameras = Cameras(*(field.repeat(2) for field in ring(4, 20.0, 3.0, 40.0)))
    torch.manual_seed(0)
    found = prior.sample(captions, cameras, 3.0)
    error = found - render(captions, cameras, 8)[:, :3]
    assert error.square().mean() < 0.015  # 0.002; 0.047 if the noise stays as it was


@pytest.mark.parametrize(
    "options",
    [dict(attention_slicing=True), dict(vae_slicing=True), dict(sequential_cpu_offload=True)],
    ids=str,
)
def test_less_memory_is_the_same(tmp_path: Path, options: dict[str, bool]) -> None:
    """The same noise, latents and gradient; what is offloaded has no memory between the calls."""
    stable_diffusion(tmp_path)
    results = []
    for each in ({}, options):
        prior = Diffusion.load(str(tmp_path), **each)
        images = torch.linspace(0, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16).requires_grad_()
        torch.manual_seed(2)
        latents = prior.encode(images)
        latents.square().sum().backward()
        noise = prior.noise(latents.detach(), torch.tensor([100, 700]), CAPTIONS[:2], None)
        results.append([latents.detach(), images.grad, noise])
    torch.testing.assert_close(*results)
    assert prior.vae.use_slicing == ("vae_slicing" in options)
    away = {p.device.type for p in prior.parameters()}
    assert away == ({"meta"} if "sequential_cpu_offload" in options else {"cpu"})


def test_half_precision(tmp_path: Path) -> None:
    """Weights in bfloat16 give about the same, in float32."""
    stable_diffusion(tmp_path)
    prior, half = (Diffusion.load(str(tmp_path), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    noisy, times = torch.randn(2, 4, 8, 8), torch.tensor([100, 700])
    expected, found = (each.noise(noisy, times, CAPTIONS[:2], None) for each in (prior, half))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    assert half.encode(torch.rand(1, 3, 16, 16)).dtype == half.alphas.dtype == torch.float32


def test_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a pipeline only what is needed is fetched, after a look at what it is."""
    stable_diffusion(tmp_path / "hub")
    (tmp_path / "hub/safety_checker").mkdir()
    (tmp_path / "hub/safety_checker/model.safetensors").touch()
    (tmp_path / "hub/unet/diffusion_pytorch_model.fp16.safetensors").touch()
    asked = []

    def snapshot(name: str, allow_patterns: str | list[str]) -> str:
        asked.append(name)
        here = [path.relative_to(tmp_path / "hub") for path in (tmp_path / "hub").rglob("*.*")]
        for path in filter_repo_objects(map(str, here), allow_patterns=allow_patterns):
            (tmp_path / "cache" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cache" / path).write_bytes((tmp_path / "hub" / path).read_bytes())
        return str(tmp_path / "cache")

    monkeypatch.setattr("vision.threed.diffusion.snapshot_download", snapshot)
    assert Diffusion.load("some/model").side == 16
    assert asked == ["some/model"] * 2
    weights = {str(path.relative_to(tmp_path / "cache")) for path in tmp_path.glob("cache/*/*.safetensors")}
    assert weights == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }


# ---- what does not work


def refused(name: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        Diffusion.load(str(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(tmp_path / "none") == (
        f"{tmp_path}/none: no such folder; name one, or a model on the Hugging Face hub"
    )
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path}: model_index.json cannot be read from this folder (")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused("nobody/nothing")
    assert message.startswith(
        "nobody/nothing: no such folder, and model_index.json cannot be had from the Hugging Face hub ("
    )
    assert "run `hf download nobody/nothing --local-dir FOLDER` where there is one" in message
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert refused(tmp_path).endswith("run pip install -e '.[text-to-3d]'")


SD = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": [None, None],
}
XL = SD | {
    "_class_name": "StableDiffusionXLPipeline",
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "force_zeros_for_empty_prompt": True,
}


@pytest.mark.parametrize(
    ("index", "what"),
    [
        (XL, "is a StableDiffusionXLPipeline with text_encoder_2=CLIPTextModelWithProjection"),
        (SD | {"unet": ["diffusers", "UNet2DModel"]}, "is a StableDiffusionPipeline with unet=UNet2DModel"),
        (SD | {"text_encoder": ["transformers", "T5EncoderModel"]}, "with text_encoder=T5EncoderModel"),
        (SD | {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}, "with scheduler=FlowMatch"),
        ({k: v for k, v in SD.items() if k != "unet"}, "is a StableDiffusionPipeline without unet"),
        (SD | {"tokenizer": [None, None]}, "is a StableDiffusionPipeline without tokenizer"),
    ],
)
def test_other_pipelines(tmp_path: Path, index: dict[str, Any], what: str) -> None:
    """What was found is named, and what works."""
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path}: is a ")
    assert what in message
    assert WORKS in message


@pytest.mark.parametrize(
    ("unet", "what"),
    [
        (dict(in_channels=9), "its UNet has in_channels=9, not 4"),
        (dict(class_embed_type="timestep"), "its UNet has class_embed_type=timestep, not None or projection"),
        (
            dict(class_embed_type="projection", projection_class_embeddings_input_dim=7),
            "its UNet has projection_class_embeddings_input_dim=7, not 4",
        ),
        (
            dict(
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=80,
            ),
            "its UNet has addition_embed_type=text_time, not None or text",
        ),
        (dict(cross_attention_dim=24), "its UNet has cross_attention_dim=24, not 16"),
        (dict(sample_size=(8, 16)), "its UNet has sample_size="),
    ],
)
def test_other_networks(tmp_path: Path, unet: dict[str, Any], what: str) -> None:
    stable_diffusion(tmp_path, unet=unet)
    message = refused(tmp_path)
    assert what in message
    assert WORKS in message


def drop(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_in.weight"]
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (
            drop,
            "unet/ (UNet2DConditionModel) cannot be read from this folder (missing weights, such as conv_in",
        ),
        (lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").unlink(), "unet/ (UNet2DCond"),
        (lambda folder: (folder / "vae/config.json").unlink(), "vae/ (AutoencoderKL) cannot be read"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "model_index.json cannot be read"),
    ],
)
def test_damage(tmp_path: Path, damage: Callable[[Path], Any], what: str) -> None:
    stable_diffusion(tmp_path)
    damage(tmp_path)
    assert what in refused(tmp_path)


def test_flow_matching_is_refused(tmp_path: Path) -> None:
    stable_diffusion(tmp_path)
    path = tmp_path / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "flow_prediction"}))
    assert "predicts flow_prediction, not epsilon, v_prediction or sample" in refused(tmp_path)


def test_the_papers_size() -> None:
    """The weights of Stable Diffusion 2.1, of which the parameters are known; the UNet takes the longest."""
    cost = paper_scale()
    positions = 8 * 77  # int64
    assert cost.weights == {
        "unet": 2 * 865_910_724,
        "vae": 2 * 83_653_863,
        "text_encoder": 2 * 340_387_840 + positions,
    }
    assert 1.2e12 < cost.denoise < 2e12
    assert 1e12 < cost.encode < 3e12
