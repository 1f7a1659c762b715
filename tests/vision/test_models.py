"""Building classifiers, loading weights into them, the linear probe, and what the optimizer gets of them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from tiny import TINY
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import adan_optim
from repro.errors import UserError
from repro.interop import read_weights
from repro.ledger import rows
from repro.ledger.rows import Row
from repro.train.run_folder import run_name
from vision.config import DataConfig, ModelConfig, VisionConfig
from vision.models import Probe, build, build_random, check_size, load

Command = Callable[..., tuple[int, str, str]]
DATA = DataConfig(size=16, channels=3)
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


def config(name: str = "vit_tiny_patch16_224", **options: Any) -> ModelConfig:
    kwargs = VIT | options.pop("kwargs", {}) if name.startswith("vit") else options.pop("kwargs", {})
    return ModelConfig(name=name, kwargs=kwargs, **options)


def stored(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def vit(classes: int, **kwargs: Any) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", num_classes=classes, **VIT | kwargs)


def autoencoder(**kwargs: Any) -> dict[str, Tensor]:
    """What the official pre-training of MAE saves."""
    rest = {name: torch.randn(1, 1, 8) for name in ("mask_token", "decoder_pos_embed")}
    return vit(0, **kwargs).state_dict() | rest | {"decoder_embed.weight": torch.randn(8, 16)}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert not [name for name, x in ours.items() if not torch.equal(x, theirs[name])]


@pytest.mark.parametrize(
    ("name", "says", "cure"),
    [
        ("vit_tiny_patch16_224", "Input height (48) doesn't match model (16)", "model.kwargs.img_size=48"),
        ("deit_tiny_patch16_224", "Input height (48) doesn't match model (224)", "+model.kwargs.img_size=48"),
        ("test_convnext", "Kernel size can't be greater than actual input size", "a larger data.size"),
    ],
)
def test_image_sizes_that_the_model_does_not_take(name: str, says: str, cure: str) -> None:
    size = 2 if "conv" in name else 48
    data = DataConfig(size=size, channels=3)
    model = build_random(config(name), data, 5)
    with pytest.raises(UserError) as caught:
        check_size(model, name, config(name).kwargs, data)
    assert str(caught.value).startswith(f"data.size={size}: {name} does not take such images (")
    assert f"{says}); set {cure}" in str(caught.value)


def test_a_model_that_looks_at_values_is_no_fault_of_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    class Looking(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            assert float(images.sum()) == 0  # which the meta device cannot tell
            return super().forward(images[:, 0, 0])

    monkeypatch.setattr(timm, "create_model", lambda *_, **options: Looking(16, options["num_classes"]))
    before = torch.random.get_rng_state()
    model = build_random(config(), DATA, 5)
    before_model = torch.random.get_rng_state()
    check_size(model, "looking", {}, DATA)
    assert model.training
    assert not torch.equal(before, before_model)  # its weights were drawn
    assert torch.equal(before_model, torch.random.get_rng_state())  # and nothing else


def test_weights_with_as_many_classes_are_taken_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = vit(10)
    path = stored(tmp_path / "x.pth", {"module." + name: x for name, x in source.state_dict().items()})
    model = build(config(checkpoint=path, head_std=0.1), DATA, 10)
    assert_equal(dict(model.state_dict()), dict(source.state_dict()))
    assert capsys.readouterr().out == ""


def test_a_head_for_other_classes_is_drawn_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = vit(7).state_dict()
    path = stored(tmp_path / "x.pth", {"state_dict": source, "arch": "vit", "epoch": 1})
    model = build(config(checkpoint=path, head_std=1e-5), DATA, 10)
    loaded = {name: x for name, x in model.state_dict().items() if not name.startswith("head.")}
    assert_equal(loaded, {name: x for name, x in source.items() if not name.startswith("head.")})
    assert 5e-6 < model.head.weight.detach().std().item() < 2e-5
    assert not model.head.bias.any()
    assert capsys.readouterr().out == f"{path}: head: 7 classes there, 10 here: drawn new\n"


def test_averaged_weights_go_before_others(tmp_path: Path) -> None:
    raw, averaged = vit(10).state_dict(), vit(10).state_dict()
    content = {"state_dict": raw, "state_dict_ema": averaged, "arch": "vit", "epoch": 1, "version": 2}
    path = Path(stored(tmp_path / "x.pth.tar", content))
    assert_equal(dict(build(config(checkpoint=str(path)), DATA, 10).state_dict()), averaged)
    assert_equal(read_weights(path, "model")[0], raw)


def test_fine_tuning_an_autoencoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = autoencoder()
    source["norm.weight"] += 1
    path = stored(tmp_path / "mae.pth", {"model": source})
    token = build(config(checkpoint=path), DATA, 10)
    assert torch.equal(token.norm.weight, source["norm.weight"])
    capsys.readouterr()
    model = build(config(checkpoint=path, kwargs={"global_pool": "avg"}), DATA, 10)
    ours = model.state_dict()
    assert torch.equal(model.fc_norm.weight, torch.ones(16))
    shared = {name for name in ours if not name.startswith(("fc_norm.", "head."))}
    assert shared == {n for n in source if not n.startswith(("norm.", "decoder_", "mask_token"))}
    assert not [name for name in shared if not torch.equal(ours[name], source[name])]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}: head: 0 classes there, 10 here: drawn new"
    assert len(lines) == 2
    with pytest.raises(UserError, match=r"mae\.pth does not fit vit_tiny_patch16_224: "):
        load(vit(10), source, path)  # for evaluation, which draws no head


def test_position_embeddings_are_resized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = vit(10).state_dict()
    path = stored(tmp_path / "x.pth", source)
    model = build(config(checkpoint=path, kwargs={"img_size": 24}), DATA, 10)
    resized = resample_abs_pos_embed(source["pos_embed"], [6, 6], num_prefix_tokens=1)
    torch.testing.assert_close(model.state_dict()["pos_embed"], resized)
    assert "pos_embed: [1, 17, 16] there, [1, 37, 16] here: resized" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kwargs", "channels", "difference"),
    [
        ({"embed_dim": 32}, 3, "its cls_token has shape [1, 1, 16], here it is [1, 1, 32]"),
        ({"depth": 3}, 3, "it has no blocks.2.norm1.weight"),
        ({"depth": 1}, 3, "its blocks.1.norm1.weight has no place here"),
        ({"class_token": False, "global_pool": "avg"}, 3, "its "),
        ({}, 1, "its patch_embed.proj.weight takes 3 channels, here there are 1; see data.channels"),
    ],
)
@pytest.mark.parametrize("classes", [7, 10])
def test_weights_that_do_not_fit(
    tmp_path: Path, kwargs: dict[str, Any], channels: int, difference: str, classes: int
) -> None:
    path = stored(tmp_path / "x.pth", vit(classes).state_dict())
    with pytest.raises(UserError) as caught:
        build(config(checkpoint=path, kwargs=kwargs), DataConfig(size=16, channels=channels), 10)
    assert str(caught.value).startswith(f"{path} does not fit vit_tiny_patch16_224: {difference}")


def test_weights_of_another_family(tmp_path: Path) -> None:
    path = stored(tmp_path / "x.pth", vit(10).state_dict())
    for name in ("test_resnet", "test_convnext"):
        with pytest.raises(UserError, match=f"x.pth does not fit {name}: it has no "):
            build(config(name, checkpoint=path), DATA, 10)


def test_timms_weights_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    source = timm.create_model("test_vit").state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(source))
    model = build(config("test_vit.r160_in1k", pretrained=True), DataConfig(channels=3), 10)
    assert torch.equal(model.state_dict()["blocks.0.attn.qkv.weight"], source["blocks.0.attn.qkv.weight"])
    assert model.head.weight.shape == (10, 64)


def test_no_network_and_no_such_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("test_vit.r160_in1k", "test_vit"):
        with pytest.raises(UserError, match=r"no weights for test_vit.*; model\.checkpoint=FILE takes them"):
            build(config(name, pretrained=True), DataConfig(channels=3), 10)
    with pytest.raises(UserError, match="Invalid pretrained tag"):
        build(config("test_vit.nope", pretrained=True), DataConfig(channels=3), 10)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_resnet", "test_convnext"])
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    kwargs = {"img_size": 32} if name.startswith("vit") else {}
    models = [
        build_random(config(name, kwargs=kwargs, grad_checkpointing=saves), DATA, 10)
        for saves in (False, True)
    ]
    models[1].load_state_dict(models[0].state_dict())
    images = torch.randn(2, 3, 32, 32)
    kept = []
    for model in models:
        sizes: list[int] = []

        def note(x: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            loss = model(images).square().mean()
        loss.backward()
        kept.append(sum(sizes))
    assert kept[1] < kept[0]  # elements for the backward pass
    for (key, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=key)


def test_what_a_model_does_not_have() -> None:
    with torch.device("meta"):
        with pytest.raises(UserError, match=r"grad_checkpointing=true: timm's pit_ti_224 does not have it"):
            build_random(config("pit_ti_224", grad_checkpointing=True), DATA, 10)
        with pytest.raises(
            UserError, match=r"head_std=0\.01: the head of deit_tiny_dist.* is not one linear"
        ):
            build_random(config("deit_tiny_distilled_patch16_224", head_std=0.01), DATA, 10)


def test_channels_last_computes_the_same() -> None:
    model = build_random(config("test_resnet"), DATA, 10).eval()
    images = torch.randn(2, 3, 16, 16)
    expected = model(images)
    model = model.to(memory_format=torch.channels_last)
    assert model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images.contiguous(memory_format=torch.channels_last)), expected)


def probe(name: str = "test_resnet") -> Probe:
    model = build_random(config(name, probe=True, head_std=0.01), DATA, 10)
    assert isinstance(model, Probe)
    return model


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
def test_a_probe_trains_its_head_alone(name: str) -> None:
    model = probe(name)
    optimizer = adan_optim.build_optimizer(model, "lars", lr=1.0)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(model.head.weight), id(model.head.bias)}
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    for part in (model, copy.deepcopy(model), average.module):
        part.train()
        assert part.norm.training
        assert not any(module.training for module in part.trunk.modules())
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 16, 16)).square().mean().backward()
        optimizer.step()
        average.update_parameters(model)
    for state in (model.state_dict(), average.module.state_dict()):
        same = {name for name, x in state.items() if torch.equal(x, before[name])}
        assert {name for name in state if name.startswith("trunk.")} == same
    features = model.trunk(images := torch.randn(3, 3, 16, 16))
    statistics = model.norm.running_mean, model.norm.running_var
    normed = (features - statistics[0]) / (statistics[1] + 1e-6).sqrt()
    torch.testing.assert_close(model.eval()(images), model.head(normed))


@pytest.mark.recipe
def test_a_probe_of_a_run(command: Command) -> None:
    small = [*TINY, "model=vit_patches"]
    assert command(*small, "run.name=encoder")[0] == 0
    status, out, err = command(
        "+probe=digits", *small[:4], "ema_decay=0.9", "run.name=probe",
        "model.checkpoint=runs/vision/encoder", "run.monitor=10",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "head: 10 classes there, 0 here: left out" in out
    encoder, _ = read_weights(Path("runs/vision/encoder"))
    for file in ("model", "ema"):
        weights = load_file(next(Path("runs/vision/probe/checkpoints").iterdir()) / f"{file}.safetensors")
        trunk = {name: x for name, x in encoder.items() if not name.startswith("head.")}
        assert_equal(
            trunk, {n.removeprefix("trunk."): x for n, x in weights.items() if n.startswith("trunk.")}
        )


def test_lars_of_the_probe_is_maes() -> None:
    """Weights are scaled to their norm, the bias is not: util/lars.py of facebookresearch/mae."""
    from test_train import configure

    model = probe()
    settings = configure("+probe=linear").optimizer
    optimizer = adan_optim.build_optimizer(model, settings)
    expected = [p.detach().clone() for p in (model.head.weight, model.head.bias)]
    momenta = [torch.zeros_like(p) for p in expected]
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 3, 16, 16)).square().mean().backward()
        for p, mu, q in zip(expected, momenta, (model.head.weight, model.head.bias), strict=True):
            update = q.grad.clone()
            if p.ndim > 1 and p.norm() > 0 and update.norm() > 0:
                update *= 0.001 * p.norm() / update.norm()
            mu.mul_(0.9).add_(update)
            p.sub_(6.4 * mu)
        optimizer.step()
    torch.testing.assert_close(model.head.weight.detach(), expected[0])
    torch.testing.assert_close(model.head.bias.detach(), expected[1])


@pytest.mark.parametrize(("name", "blocks"), [("mae/base", 12), ("mae/large", 24)])
def test_layer_wise_decay_is_maes(name: str, blocks: int) -> None:
    """util/lr_decay.py of facebookresearch/mae: rates by name, and what does not decay."""
    recipe = rows.load(name)
    values = recipe.config["model"]
    with torch.device("meta"):
        model = build_random(
            ModelConfig(values["name"], values["kwargs"], values["drop_path"]), DataConfig(channels=3), 1000
        )
    factor, decay, lr = (recipe.get(f"optimizer.{key}") for key in ("layer_decay", "weight_decay", "lr"))
    optimizer = adan_optim.build_optimizer(model, recipe.get("optimizer"))
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for key, p in model.named_parameters():
        if key in ("cls_token", "pos_embed") or key.startswith("patch_embed"):
            layer = 0
        else:
            layer = int(key.split(".")[1]) + 1 if key.startswith("blocks") else blocks + 1
        group = groups[id(p)]
        assert group["lr"] == pytest.approx(lr * factor ** (blocks + 1 - layer), rel=1e-12), key
        assert group["weight_decay"] == (0 if p.ndim == 1 or key in ("cls_token", "pos_embed") else decay), (
            key
        )
    rates = [float(block.drop_path1.drop_prob) for block in list(model.blocks)[1:]]
    assert rates == pytest.approx([values["drop_path"] * i / (blocks - 1) for i in range(1, blocks)])


def test_a_row_that_starts_from_another_says_so() -> None:
    row = Row(name="a/b", after="a/c", scale="proxy")
    for model, message in (
        (ModelConfig(), r"model\.checkpoint is not set: a/b starts from a/c, .*a/c --scale proxy`: "),
        (ModelConfig(checkpoint="/none"), r"checkpoint=/none: no such file or folder; a/b starts from a/c"),
        (ModelConfig(checkpoint="x", pretrained=True), "set model.pretrained=false as well"),
    ):
        with pytest.raises(UserError, match=message):
            VisionConfig(model=model, row=row).check()
    for model in (
        ModelConfig(checkpoint="scratch"),
        ModelConfig(pretrained=True),
        ModelConfig(checkpoint="/"),
    ):
        VisionConfig(model=model, row=row).check()


@pytest.mark.parametrize("name", ["mae/base", "mae/large"])
def test_the_proxy_starts_from_the_proxy_of_its_pretraining(name: str) -> None:
    recipe = rows.load(name, ["+proxy=mae_finetune"])
    before = rows.load(f"{name}_pretrain").row
    expected = run_name([f"+paper={name}_pretrain", "+proxy=mae_pretrain"])
    assert recipe.get("model.checkpoint") == f"runs/{before.config}/{expected}"
    assert before.proxy in (None, "mae_pretrain")
    assert (recipe.row.status, recipe.row.proxy) == ("runnable", "mae_finetune")


@pytest.mark.slow
def test_compiled(command: Command) -> None:
    """Compiled or not, the same except for rounding."""
    losses = []
    for compile in (True, False):
        assert command(*TINY, f"compile={compile}", f"run.name=compile-{compile}", "batch_size=479")[0] == 0
        metrics = Path(f"runs/vision/compile-{compile}/metrics.jsonl").read_text()
        losses.append(float(metrics.split('"train_loss": ')[1].split(",")[0]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
