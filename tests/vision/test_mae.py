"""Masked autoencoders: the model against transformers' and the paper, the recipe end to end, its rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

import adan_optim
from repro.errors import UserError
from repro.ledger import rows
from repro.train.cli import CONFIGS
from vision.config import PretrainConfig
from vision.mae import MaskedAutoencoder
from vision.pretrain_mae import PICTURE, Batch, Pretraining, main

Command = Callable[..., tuple[int, str, str]]

ENCODER: dict[str, Any] = dict(img_size=24, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0)
TINY = [
    "epochs=1", "schedule.warmup_epochs=0", "batch_size=256", "model.kwargs.embed_dim=16",
    "model.kwargs.depth=1", "model.decoder={embed_dim: 16, depth: 1, num_heads: 2}",
]  # fmt: skip


def tiny(encoder: dict[str, Any] | None = None, **options: Any) -> MaskedAutoencoder:
    """A model of nine patches of 8x8 RGB pixels, two of which are seen, in float64."""
    torch.manual_seed(0)
    built = timm.create_model("vit_tiny_patch16_224", **(ENCODER | (encoder or {})))
    decoder = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    return MaskedAutoencoder(built, **(decoder | options)).double()


def batch() -> tuple[Tensor, Tensor]:
    """Three images and noise for them."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 24, 24, generator=generator, dtype=torch.float64)
    return images, torch.rand(3, 9, generator=generator)


def in_transformers(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a model's parts under the names that transformers' ViTMAEForPreTraining has for them."""
    renamed = {}
    parts = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
    encoder = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
        "norm.weight": "vit.layernorm.weight",
        "norm.bias": "vit.layernorm.bias",
    }
    for name, value in given.items():
        if "blocks." not in name:
            renamed[encoder.get(name, f"decoder.{name}")] = value
            continue
        stem, _, kind = name.rpartition(".")
        blocks, layer, part = stem.split(".", 2)
        under = f"{'vit.layers' if blocks == 'blocks' else 'decoder.decoder_layers'}.{layer}"
        if part == "attn.qkv":
            for each, third in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{under}.attention.{each}_proj.{kind}"] = third
        else:
            renamed[f"{under}.{parts.get(part, part)}.{kind}"] = value
    return renamed


@pytest.mark.parametrize("norm_pixels", [True, False])
def test_it_is_that_of_transformers(norm_pixels: bool) -> None:
    """The same loss, masks, predictions and gradients with the same weights and noise."""
    model = tiny(norm_pixels=norm_pixels)
    config = ViTMAEConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=24,
        patch_size=8, decoder_hidden_size=16, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
        decoder_intermediate_size=64, layer_norm_eps=1e-6, norm_pix_loss=norm_pixels,
    )  # fmt: skip
    other: Any = ViTMAEForPreTraining(config).double()
    other.load_state_dict(in_transformers(model.state_dict()))
    images, noise = batch()
    expected = other(images, noise=noise)
    prediction, hidden = model.predict(images, noise)
    loss = model(images, noise)
    assert torch.equal(hidden.double(), expected.mask.double())
    assert hidden.sum(1).tolist() == [7, 7, 7]
    torch.testing.assert_close(prediction, expected.logits)
    torch.testing.assert_close(loss.mean(), expected.loss)
    loss.mean().backward()
    expected.loss.backward()
    gradients = in_transformers({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    theirs = {name: p.grad for name, p in other.named_parameters() if p.requires_grad}
    torch.testing.assert_close(gradients, theirs)


def test_the_loss_is_the_papers() -> None:
    """In numpy: patches cut out one by one, and the mean over the hidden ones of each image."""
    model = tiny()
    images, drawn = batch()
    with torch.no_grad():
        prediction, _ = model.predict(images, drawn)
        loss = model(images, drawn)
    for image, order, predicted, found in zip(images, drawn.argsort(1), prediction, loss, strict=True):
        errors = []
        for patch in order[2:].tolist():  # of nine patches a quarter, rounded down, is seen
            y, x = 8 * (patch // 3), 8 * (patch % 3)
            pixels = image[:, y : y + 8, x : x + 8].numpy().transpose(1, 2, 0).ravel()
            normal = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6)
            errors.append(np.mean((predicted[patch].numpy() - normal) ** 2))
        assert found.item() == pytest.approx(np.mean(errors), rel=1e-12)


OFFICIAL = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")  # of a block in its order


def official_shapes(width: int, depth: int) -> dict[str, list[int]]:
    """Names and shapes in a checkpoint of facebookresearch/mae: 224 pixels a side, patches of 16."""
    shapes = {"cls_token": [1, 1, width], "pos_embed": [1, 197, width], "mask_token": [1, 1, 512]}
    shapes["decoder_pos_embed"] = [1, 197, 512]
    sizes = {"patch_embed.proj": [width, 3, 16, 16], "norm": [width], "decoder_embed": [512, width]}
    sizes |= {"decoder_norm": [512], "decoder_pred": [768, 512]}
    for blocks, size, number in (("blocks", width, depth), ("decoder_blocks", 512, 8)):
        inner = [[size], [3 * size, size], [size, size], [size], [4 * size, size], [size, 4 * size]]
        for layer in range(number):
            sizes |= {f"{blocks}.{layer}.{part}": x for part, x in zip(OFFICIAL, inner, strict=True)}
    for name, size in sizes.items():
        shapes |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    return shapes


@pytest.mark.parametrize(
    ("name", "width", "depth", "trained", "fixed"),
    [("vit_base", 768, 12, 111_655_680, 252_160), ("vit_large", 1024, 24, 329_239_296, 302_592)],
)
def test_official_checkpoints_fit(name: str, width: int, depth: int, trained: int, fixed: int) -> None:
    """Every name and shape, and the counts; the encoder's names are timm's. The loss works without memory."""
    with torch.device("meta"):
        encoder = timm.create_model(f"{name}_patch16_224", num_classes=0)
        names = set(encoder.state_dict())
        model = MaskedAutoencoder(encoder)
        weights = {key: torch.empty(shape) for key, shape in official_shapes(width, depth).items()}
        assert model(torch.empty(2, 3, 224, 224)).shape == (2,)
    model.load_state_dict(weights, strict=True)
    assert {key for key in weights if not key.startswith(("decoder_", "mask_token"))} == names
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    assert sum(buffer.numel() for buffer in model.buffers()) == fixed
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


def test_position_embeddings_are_the_official_ones() -> None:
    """Of row 1, column 2: the column's half is the first, as the weights that were released have it."""
    model = tiny()
    angles = [place * 10000 ** -(i / 8) for place in (2, 1) for i in range(8)]
    column, row = np.array(angles).reshape(2, 8)
    expected = np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)])
    np.testing.assert_allclose(model.pos_embed[0, 1 + 3 * 1 + 2].numpy(), expected, atol=1e-7)
    assert not model.pos_embed[0, 0].any()
    assert model.decoder_pos_embed.shape == (1, 10, 16)


def test_hidden_pixels_are_not_seen() -> None:
    """Only what is visible goes through the encoder, and only that moves a prediction."""
    model = tiny()
    images, noise = batch()
    sizes = []
    model.blocks[0].register_forward_hook(lambda module, given, made: sizes.append(made.shape))
    with torch.no_grad():
        prediction, hidden = model.predict(images, noise)
        mask = model.unpatchify(hidden[..., None].expand(-1, -1, 192).double())
        same, _ = model.predict(images + mask, noise)
        other, _ = model.predict(images + (1 - mask), noise)
    assert sizes[0] == (3, 1 + 2, 32)
    assert torch.equal(same, prediction)
    assert not torch.isclose(other, prediction).all(2).any()


def test_masks_are_drawn_evenly() -> None:
    """Without noise they are of the global generator, and each patch is hidden as often as any other."""
    model = tiny().float()
    images = torch.zeros(3000, 3, 24, 24)
    torch.manual_seed(3)
    with torch.no_grad():
        first, second = (model.predict(images)[1] for _ in range(2))
        torch.manual_seed(3)
        again = model.predict(images)[1]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert (first.float().mean(0) - 7 / 9).abs().max() < 0.04  # five standard deviations
    assert first.sum(1).unique().tolist() == [7]


def test_initial_weights() -> None:
    """The official code's: Glorot's uniform for all matrices, also of the patches; tokens normal."""
    model = tiny({"embed_dim": 256, "num_heads": 8}, embed_dim=128)
    for name, p in model.named_parameters():
        if p.ndim == 1:
            if not name.startswith("patch_embed"):
                assert torch.equal(p, torch.full_like(p, float("norm" in name and "weight" in name))), name
        elif name.endswith("token"):
            assert p.std().item() == pytest.approx(0.02, rel=0.3), name
        else:
            bound = (6 / sum(p.flatten(1).shape)) ** 0.5
            assert p.abs().max() < bound * 1.0001, name
            assert p.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name


@pytest.mark.parametrize(
    "encoder",
    [
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 2, "no_embed_class": True},
        {"pre_norm": True},
        {"init_values": 1e-5},
        {"img_size": (16, 24), "patch_size": (4, 8), "in_chans": 1},
    ],
)
def test_encoders(encoder: dict[str, Any]) -> None:
    """Without a class token (and the last norm under another name), with registers, of other shapes."""
    model = tiny(encoder)
    images = torch.randn(2, encoder.get("in_chans", 3), *model.patch_embed.img_size, dtype=torch.float64)
    assert torch.equal(model.unpatchify(model.patchify(images)), images)
    model(images).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_precision_and_checkpointing_change_nothing() -> None:
    """Autocast rounds, but the loss is float32; with less memory the gradients are the same."""
    images, noise = batch()
    model = tiny().float()
    expected = model(images.float(), noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(images.float(), noise)
        assert model.predict(images.float(), noise)[0].dtype == torch.bfloat16
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
    gradients = []
    for enable in (False, True):
        model = tiny()
        model.set_grad_checkpointing(enable)
        model(images, noise).mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_tokens_decay() -> None:
    """As in the official pre-training: all but what has one dimension. timm's own list does not count."""
    groups = {group["name"]: group["params"] for group in adan_optim.param_groups(tiny(), 1e-3, 0.1)}
    assert {p.ndim for p in groups["no_decay"]} == {1}
    assert {p.ndim for p in groups["decay"]} == {2, 3, 4}


@pytest.mark.parametrize("norm_pixels", [True, False])
def test_reconstruction(monkeypatch: pytest.MonkeyPatch, norm_pixels: bool) -> None:
    """A right prediction gives the image back, a wrong one where it is hidden alone, and that is blank."""
    model = tiny(norm_pixels=norm_pixels)
    images, noise = batch()
    _, hidden = model.predict(images, noise)
    target, _, _ = model.target(images)
    monkeypatch.setattr(model, "predict", lambda *_: (target, hidden))
    torch.testing.assert_close(model.reconstruct(images, noise)[0], images)
    monkeypatch.setattr(model, "predict", lambda *_: (target + 1, hidden))
    filled, masked = (model.patchify(x) for x in model.reconstruct(images, noise))
    pixels = model.patchify(images)
    assert torch.equal(filled != pixels, hidden[..., None].expand_as(pixels))
    assert torch.equal(masked, torch.where(hidden[..., None], 0.0, pixels))


@pytest.mark.parametrize(
    ("encoder", "options", "line"),
    [
        ({}, {"mask_ratio": 0.95}, "model.mask_ratio=0.95: shows 0 of 9 patches"),
        ({}, {"mask_ratio": 0.0}, "model.mask_ratio=0.0: shows 9 of 9 patches"),
        ({}, {"num_heads": 3}, "model.decoder.num_heads=3: must divide embed_dim=16"),
        ({}, {"embed_dim": 18}, "embed_dim=18: must be divisible by 4"),
        ({"patch_size": 7}, {}, "model.kwargs.patch_size=7: does not divide the image's side, 24"),
        ({"pos_embed": "none"}, {}, "the encoder needs position embeddings"),
        ({"dynamic_img_size": True}, {}, "and one size of images"),
    ],
)
def test_what_does_not_fit(encoder: dict[str, Any], options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        tiny(encoder, **options)


# ---- the recipe


def configure(*overrides: str) -> PretrainConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_object(compose("pretrain_mae", list(overrides)))
    assert isinstance(config, PretrainConfig)
    return config


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run vision/pretrain_mae.py in an empty folder; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        return main(list(arguments)), *capfd.readouterr()

    return run


def test_digits_end_to_end(command: Command) -> None:
    """It learns, keeps the run with the lowest loss as the best, draws, and another run can start from it."""
    arguments = [*TINY, "epochs=3", "run.name=x", "optimizer.lr=0.01", "schedule=constant"]
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert "best" in out
    records = [
        json.loads(line) for line in Path("runs/pretrain_mae/x/metrics.jsonl").read_text().splitlines()
    ]
    losses = [record["test_loss"] for record in records]
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < 0.9 * losses[0]
    summary = json.loads(Path("runs/pretrain_mae/x/summary.json").read_text())
    assert summary["best"]["test_loss"] == min(losses)
    picture = Path("runs/pretrain_mae/x") / PICTURE
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"))
    rows = (pixels[30:] < 200).mean(1) > 0.2  # below the title: more than a label
    assert (np.diff(rows.astype(int)) == 1).sum() == 3  # originals, masked, reconstructions
    picture.unlink()
    assert "is finished" in command(*arguments)[1]
    assert picture.exists()
    again = [*TINY, "run.name=y", "model.checkpoint=runs/pretrain_mae/x", "optimizer.lr=0", "ema_decay=0.9"]
    assert command(*again)[0] == 0
    summary = json.loads(Path("runs/pretrain_mae/y/summary.json").read_text())
    assert summary["final"]["test_loss"] == pytest.approx(min(losses), rel=1e-6)
    assert summary["final"]["ema_test_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_the_measure_has_fixed_masks() -> None:
    """Of the image's index: neither batches nor draws in between change them, but another index does."""
    task = Pretraining(configure(*TINY))
    data, model = task.valid_data(), task.build_model()
    images = task.normalize(torch.stack([data[index][0] for index in range(6)]))
    indices = torch.tensor([data[index][1] for index in range(6)])
    whole, size = task.evaluate(model, Batch(images, indices))
    parts = [task.evaluate(model, Batch(images[part], indices[part]))[0] for part in (slice(4), slice(4, 6))]
    assert size == 6
    torch.testing.assert_close(whole["test_loss"], parts[0]["test_loss"] + parts[1]["test_loss"])
    moved, _ = task.evaluate(model, Batch(images, indices + 1))
    assert not torch.isclose(whole["test_loss"], moved["test_loss"])


def test_an_encoder_of_another_kind() -> None:
    with pytest.raises(UserError, match=r"needs a vision transformer of plain patches .* not timm's ResNet"):
        MaskedAutoencoder(timm.create_model("resnet18"))


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("model=resnet18", "model=resnet18: is for other recipes; this one has vit_base, vit_mini"),
        ("model.name=vit_tini", "model.name=vit_tini"),
        ("+model.kwargs.deth=3", "unexpected keyword argument 'deth'"),
        ("model.mask_ratio=1", "model.mask_ratio=1.0: shows 0 of 16 patches"),
        ("model.decoder.width=3", "model.decoder.width: no such key"),
        ("augment.mixup=0.8", "augment.mixup=0.8: must be 0; masked autoencoders do not mix or erase"),
        ("augment.erase=0.25", "augment.erase=0.25: must be 0; masked autoencoders do not mix or erase"),
        ("data.mean=[0,0,0]", "data.mean=[0.0, 0.0, 0.0]: must have data.channels=1 numbers"),
        ("augment.crop=half", "augment.crop=half: must be one of"),
        ("optimizer=sophia", "optimizer=sophia: the recipe pretrain_mae has no class scores"),
    ],
)
def test_one_line(command: Command, argument: str, line: str) -> None:
    status, _, err = command(argument)
    assert status == 2
    assert line in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["mae/base_pretrain", "mae/large_pretrain"])
def test_rows(name: str) -> None:
    """The recipe takes the row, which is runnable, and its proxy with any data; the row's own stays."""
    recipe = rows.load(name)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PretrainConfig), recipe.config))
    assert isinstance(config, PretrainConfig)
    config.check()
    assert recipe.row.status == "runnable"
    assert config.augment.label_smoothing == 0
    assert (config.data.size, config.data.mean) == (224, [0.485, 0.456, 0.406])
    for data in ("digits", "cifar10", "imagefolder"):
        proxy = rows.load(name, [f"+proxy={recipe.row.proxy}", f"data={data}"])
        assert (proxy.row.scale, proxy.get("data.name")) == ("proxy", data)
        kept = {"optimizer", "model.mask_ratio", "model.norm_pixels", "schedule.join", "schedule.min_lr"}
        own = (
            {"optimizer.lr", "optimizer.betas", "model.norm_pixels"} if data == "digits" else {"optimizer.lr"}
        )
        assert own <= proxy.row.chosen.keys()
        for other in own:
            proxy.config[other.split(".")[0]][other.split(".")[1]] = recipe.get(other)
        assert all(proxy.get(key) == recipe.get(key) for key in kept)
        assert {"epochs", "batch_size", "optimizer.lr", "model.decoder"} <= proxy.row.chosen.keys()
        with torch.device("meta"):
            encoder = timm.create_model(proxy.get("model.name"), **proxy.get("model.kwargs"))
            model = MaskedAutoencoder(encoder, **proxy.get("model.decoder"))
        assert model.num_patches * model.patch_size[0] ** 2 == proxy.get("data.size") ** 2
        assert sum(p.numel() for p in model.parameters()) < 2_000_000


@pytest.mark.recipe
def test_a_row_trains(command: Command) -> None:
    """As its proxy, with the row's schedule and clipping in Adan."""
    words = ["+paper=mae/base_pretrain", "+proxy=mae_pretrain", *TINY, "run.name=x"]
    status, out, err = command(*words)
    assert (status, err) == (0, "")
    assert "mae/base_pretrain as a proxy: its numbers are not the paper's" in out
