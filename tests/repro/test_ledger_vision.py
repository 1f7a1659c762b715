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

from repro import ledger
from repro.ledger import ROOT, Figure, Row
from repro.released.files import locate, read_log
from repro.released.log import Log, LogError
from vision.config import VisionConfig

NAMES = ledger.names()
IMAGENET = [name for name in NAMES if name.startswith("imagenet/")]
MEMORY = [name for name in NAMES if name.startswith("memory/")]
PRETRAINING, FINE_TUNING = ["mae/base_pretrain", "mae/large_pretrain"], ["mae/base", "mae/large"]
IMAGES = 1_281_167  # of ImageNet-1k, for training

load = cache(ledger.load)


def test_every_published_row_is_there() -> None:
    families = {
        "vit_s": ("150_i", "150", "300_i", "300"),
        "vit_b": ("150", "300", "300_t"),
        "resnet50": ("100", "200", "300"),
        "resnet101": ("100", "200", "300"),
        "convnext_t": ("150", "300"),
    }
    assert set(IMAGENET) == {f"imagenet/{name}_{run}" for name, runs in families.items() for run in runs}
    models = ("resnet50", "resnet101", "vit_b", "vit_l", "swin_b", "swin_l", "convnext_b", "convnext_l")
    assert set(MEMORY) == {f"memory/{name}" for name in (*models, "gpt2_758m", "gpt2_1313m", "gpt2_grid")}
    assert {*PRETRAINING, *FINE_TUNING, "text_to_3d/dreamfusion"} <= set(NAMES)


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


@pytest.mark.parametrize("name", [*IMAGENET, *FINE_TUNING])
def test_vision_takes_the_row(name: str) -> None:
    recipe = load(name)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(VisionConfig), recipe.config))
    assert isinstance(config, VisionConfig)
    config.check()
    assert {field.name for field in fields(VisionConfig)} - {"row"} == recipe.config.keys()
    assert timm.is_model(config.model.name)


@pytest.mark.parametrize("name", [*IMAGENET, *PRETRAINING, *FINE_TUNING])
def test_samples_are_those_of_whole_batches(name: str) -> None:
    recipe = load(name)
    batch_size = recipe.get("batch_size")
    epochs = recipe.get("epochs") + recipe.get("schedule").get("cooldown_epochs", 0)
    assert recipe.row.cost is not None
    assert recipe.row.cost.samples == IMAGES // batch_size * batch_size * epochs


def count(model: nn.Module) -> tuple[int, float]:
    """Trained parameters, and operations of one image's forward pass to four digits."""
    with FlopCounterMode(display=False) as counter:  # on a CPU it would pass over attention
        model.eval()(torch.zeros(1, 3, 224, 224, device="meta"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, float(f"{counter.get_total_flops():.4g}")


def test_parameters_and_operations_are_timms() -> None:
    counted: dict[str, tuple[int, float]] = {}
    for name in [*IMAGENET, *FINE_TUNING]:
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
    bench = runpy.run_path(str(ROOT / "scripts" / "bench_optimizers.py"))
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
