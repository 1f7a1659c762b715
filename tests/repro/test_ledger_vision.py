"""Rows of the ledger for vision and benchmarks: what their logs, their models and their tables fix."""

import runpy
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from repro.ledger import rows
from repro.ledger.rows import ROOT, Figure, Row
from repro.logs.files import locate, read_log
from repro.logs.log import Log, LogError
from repro.runs import flatten
from repro.verify import verify
from vision.config import VisionConfig

NAMES = rows.names()
IMAGENET = [name for name in NAMES if name.startswith("imagenet/")]
SWIN = [name for name in NAMES if name.startswith("swin/")]
LARGE_BATCH = [name for name in NAMES if name.startswith("large_batch/")]
MEMORY = [name for name in NAMES if name.startswith("memory/")]
PRETRAINING, FINE_TUNING = ["mae/base_pretrain", "mae/large_pretrain"], ["mae/base", "mae/large"]
IMAGES = 1_281_167  # of ImageNet-1k, for training

load = cache(rows.load)


def test_every_published_row_is_there() -> None:
    families = {
        "vit_s": ("150_i", "150", "300_i", "300"),
        "vit_b": ("150", "300", "300_t"),
        "resnet50": ("100", "200", "300"),
        "resnet101": ("100", "200", "300"),
        "convnext_t": ("150", "300"),
    }
    assert set(IMAGENET) == {f"imagenet/{name}_{run}" for name, runs in families.items() for run in runs}
    assert set(SWIN) == {f"swin/swin_{size}_{epochs}" for size in "tsb" for epochs in (150, 300)}
    optimizers = ("adan", "adamw", "lamb", "lars")
    assert set(LARGE_BATCH) == {
        f"large_batch/{model}_{optimizer}" for model in ("vit_s", "resnet50") for optimizer in optimizers
    }
    models = ("resnet50", "resnet101", "vit_b", "vit_l", "swin_b", "swin_l", "convnext_b", "convnext_l")
    assert set(MEMORY) == {f"memory/{name}" for name in (*models, "gpt2_758m", "gpt2_1313m", "gpt2_grid")}
    assert {*PRETRAINING, *FINE_TUNING, "text_to_3d/dreamfusion", "text_to_3d/dreamfusion_adam"} <= set(NAMES)


@pytest.mark.parametrize("name", IMAGENET)
def test_logs_are_as_the_rows_say(name: str, released: Path) -> None:
    row = load(name).row
    log = read_or_skip(row)
    assert [file.records for file in row.logs] == [len(log.table) + log.repeated]
    assert set(row.track.values()) <= set(log.table)
    [figure] = row.published
    series = log.series(figure.column or "")
    assert (series.max(), series.iloc[-1]) == (figure.best, figure.final)


def read_or_skip(row: Row) -> Log:
    for file in row.logs:
        try:
            locate(file)
        except LogError as error:
            pytest.skip(str(error))
    return read_log(row)


def test_siblings_are_one_run_first_and_two_then(released: Path) -> None:
    shared = {}
    for name in ("vit_s_150", "vit_b_150", "resnet50_200"):
        row = load(f"imagenet/{name}").row
        [sibling] = row.siblings
        ours, theirs = (read_or_skip(each).series("eval_loss") for each in (row, load(sibling.row).row))
        same = [ours[epoch] == theirs[epoch] for epoch in range(sibling.until + 2)]
        assert same == sorted(same, reverse=True)
        shared[name] = sum(same)
    assert shared == {"vit_s_150": 38, "vit_b_150": 60, "resnet50_200": 0}


@pytest.mark.parametrize("name", [*IMAGENET, *SWIN, *LARGE_BATCH, *FINE_TUNING])
def test_vision_takes_the_row(name: str) -> None:
    recipe = load(name)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(VisionConfig), recipe.config))
    assert isinstance(config, VisionConfig)
    config.check()
    assert {field.name for field in fields(VisionConfig)} - {"row"} == recipe.config.keys()
    assert timm.is_model(config.model.name)


@pytest.mark.parametrize("name", [*IMAGENET, *SWIN, *LARGE_BATCH, *PRETRAINING, *FINE_TUNING])
def test_samples_are_those_of_whole_batches(name: str) -> None:
    recipe = load(name)
    batch_size = recipe.get("batch_size")
    epochs = recipe.get("epochs") + recipe.get("schedule").get("cooldown_epochs", 0)
    assert recipe.row.cost is not None
    assert recipe.row.cost.samples == IMAGES // batch_size * batch_size * epochs


def changes(name: str, from_name: str) -> set[str]:
    """The keys in which a row's configuration is not another's."""
    ours, theirs = (flatten(load(each).config) for each in (name, from_name))
    return {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}


def test_rows_without_a_release_have_no_number() -> None:
    """And say of their settings why they were chosen, and that no number is known."""
    for name in [*SWIN, *LARGE_BATCH]:
        row = load(name).row
        assert (row.published, row.files, row.elsewhere, row.status) == ([], [], {}, "runnable")
        assert {"number", "settings", "weights"} <= row.unpublished.keys()
        assert {"optimizer", "batch_size"} <= row.chosen.keys()
    assert verify(SWIN[0]).says == verify(LARGE_BATCH[0]).says == "nothing released"


def test_swin_has_the_settings_of_vit_b() -> None:
    for name in SWIN:
        assert load(name).get("model.drop_path") == {"t": 0.2, "s": 0.3, "b": 0.5}[name.split("_")[1]]
        short = name.endswith("_150")
        other = changes(name, "imagenet/vit_b_150" if short else "imagenet/vit_b_300_t")
        assert other - {"model.drop_path"} == {
            "model.name",
            *(() if short else ("seed", "optimizer.foreach")),
        }


def test_a_curve_is_a_released_row_but_for_the_optimizer() -> None:
    for name in LARGE_BATCH:
        other = changes(name, "imagenet/vit_s_150_i" if "vit_s" in name else "imagenet/resnet50_100")
        if name.endswith("_adan"):
            assert other == set()
        else:
            assert {key for key in other if not key.startswith("optimizer.")} == {"schedule.warmup_epochs"}
            assert load(name).get("optimizer.name") == name.rpartition("_")[2]


def test_the_learning_rate_follows_the_batch() -> None:
    """By the row's rule, with which the two released settings of ViT-S agree; what else is set stays."""
    lrs = {
        batch_size: load("large_batch/vit_s_adan", (f"batch_size={batch_size}",)).get("optimizer.lr")
        for batch_size in (1024, 4096, 32768)
    }
    assert lrs[4096] == pytest.approx(load("imagenet/vit_s_300_i").get("optimizer.lr"), rel=2e-4)
    assert lrs[32768] == pytest.approx(0.015 * 4)
    assert lrs[1024] == pytest.approx(0.015 / 2**0.5)
    assert load("large_batch/resnet50_lars", ("batch_size=32768",)).get("optimizer.lr") == 32
    assert load("large_batch/resnet50_lars", ("optimizer.lr=3",)).get("optimizer.lr") == 3


def count(model: nn.Module) -> tuple[int, float]:
    """Trained parameters, and operations of one image's forward pass to four digits."""
    with FlopCounterMode(display=False) as counter:  # on a CPU it would pass over attention
        model.eval()(torch.zeros(1, 3, 224, 224, device="meta"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, float(f"{counter.get_total_flops():.4g}")


@pytest.mark.recipe
def test_parameters_and_operations_are_timms() -> None:
    counted: dict[str, tuple[int, float]] = {}
    for name in [*IMAGENET, *SWIN, *LARGE_BATCH, *FINE_TUNING]:
        recipe = load(name)
        model, kwargs = recipe.get("model.name"), recipe.get("model.kwargs")
        if f"{model} {kwargs}" not in counted:
            with torch.device("meta"):
                counted[f"{model} {kwargs}"] = count(timm.create_model(model, **kwargs))
        assert recipe.row.cost is not None
        assert (recipe.row.parameters, recipe.row.cost.forward_flops) == counted[f"{model} {kwargs}"], name


@pytest.mark.parametrize("name", PRETRAINING)
def test_parameters_and_operations_are_those_of_transformers(name: str) -> None:
    recipe = load(name)
    width, depth, heads = {"vit_base": (768, 12, 12), "vit_large": (1024, 24, 16)}[
        recipe.get("model.name").removesuffix("_patch16_224")
    ]
    decoder = recipe.get("model.decoder")
    with torch.device("meta"):
        model = ViTMAEForPreTraining(
            ViTMAEConfig(
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                intermediate_size=4 * width,
                decoder_hidden_size=decoder["embed_dim"],
                decoder_num_hidden_layers=decoder["depth"],
                decoder_num_attention_heads=decoder["num_heads"],
                decoder_intermediate_size=4 * decoder["embed_dim"],
                mask_ratio=recipe.get("model.mask_ratio"),
                image_size=recipe.get("data.size"),
            )
        )
    assert recipe.row.cost is not None
    assert (recipe.row.parameters, recipe.row.cost.forward_flops) == count(model)


def test_memory_rows_are_the_benchmarks_models() -> None:
    bench = runpy.run_path(str(ROOT / "benchmarks" / "optimizers.py"))
    for name in MEMORY:
        row = load(name).row
        device, cuda, lists, *models = row.arguments
        assert (device, cuda, lists) == ("--device", "cuda", "--lists")
        if row.cells:
            sizes = {(cell["layers"], cell["width"]) for cell in row.cells}
            assert {bench["gpt2_size"](model) for model in models} == sizes
        else:
            [parameters] = [sum(size.numel() for size in bench["shapes"](model)) for model in models]
            millions = next(figure.value for figure in row.published if figure.metric == "parameters_m")
            assert (row.parameters, parameters // 10**6) == (parameters, millions)


def test_four_percentages_of_the_grid_are_not_those_of_its_figures() -> None:
    cells = load("memory/gpt2_grid").row.cells
    wrong = []
    for cell in cells:
        parts = {
            "step_percent": 100 * cell["fused_adan_step_ms"] / cell["adam_step_ms"],
            "peak_percent": 100 * (cell["fused_adan_peak_mb"] / cell["adam_peak_mb"] - 1),
        }
        place = cell["heads"], cell["layers"], cell["width"]
        wrong += [(*place, key) for key, part in parts.items() if not Figure("", cell[key], "%").agrees(part)]
    assert len(cells) == 25
    assert wrong == [
        (6, 6, 768, "step_percent"),
        (16, 6, 2560, "step_percent"),
        (6, 24, 1536, "peak_percent"),
        (16, 24, 2048, "step_percent"),
    ]
