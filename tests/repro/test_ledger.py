"""The ledger: every row fits its schema, agrees with the released files, and can be overridden."""

import runpy
import shutil
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import optim
from repro import ledger
from repro.config import TrainConfig
from repro.errors import UserError
from repro.ledger import CONFIGS, ROOT, Figure, Recipe, Row, Sibling
from repro.released.files import locate, read_log
from repro.released.log import Log, LogError
from repro.schedules import build_schedule
from vision.config import VisionConfig

NAMES = ledger.names()
IMAGENET = [name for name in NAMES if name.startswith("imagenet/")]
PRETRAINING, FINE_TUNING = ["mae/base_pretrain", "mae/large_pretrain"], ["mae/base", "mae/large"]
IMAGES = 1_281_167  # of ImageNet-1k, for training

load = cache(ledger.load)


def config_of(recipe: Recipe, schema: type[TrainConfig] = TrainConfig) -> Any:
    """What `schema` knows of a row's configuration, typed; an error names a key or a value that is wrong."""
    known = {field.name for field in fields(schema)}
    values = {key: value for key, value in recipe.config.items() if key in known}
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))


def sums(released: Path) -> dict[str, str]:
    """Path and SHA-256 of every released file."""
    lines = (released / "SHA256SUMS").read_text().splitlines()
    return {path: sha256 for sha256, path in (line.split() for line in lines)}


def test_tables() -> None:
    assert len(IMAGENET) == 15
    assert {*PRETRAINING, *FINE_TUNING, "text_to_3d/dreamfusion"} <= set(NAMES)
    assert len([name for name in NAMES if name.startswith("memory/")]) == 11


@pytest.mark.parametrize("name", NAMES)
class TestEveryRow:
    def test_loads_under_its_name(self, name: str) -> None:
        row = load(name).row
        assert row.name == name
        assert row.scale == "paper"
        assert (row.script == "") == (row.not_runnable is not None)
        assert row.after is None or row.after in NAMES
        assert all(file.kind in ("log", "settings", "other") for file in row.files)
        assert all((file.records is not None) == (file.kind == "log") for file in row.files)
        for figure in row.published:
            assert (figure.best is not None) == (figure.final is not None) == (figure.column is not None)
            assert figure.column is None or row.logs, f"{figure.metric} is in a log, but there is none"

    def test_begins_with_its_command(self, name: str) -> None:
        row = load(name).row
        package, head, *_ = (CONFIGS / "paper" / f"{name}.yaml").read_text().splitlines()
        assert package == "# @package _global_"
        if row.status == "runnable":
            assert f": python {row.script} {'' if row.config is None else f'+paper={name}'}" in head

    def test_is_in_the_words_of_the_loop(self, name: str) -> None:
        config_of(load(name)).check()

    def test_builds_its_optimizer(self, name: str) -> None:
        recipe = load(name)
        options = recipe.config.get("optimizer")
        if options is None:
            assert recipe.row.config is None
            return
        if options["lr"] is None:
            assert recipe.row.unpublished
            options = {key: value for key, value in options.items() if key != "lr"}
        layers = [nn.Linear(4, 4) for _ in range(2)]
        model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(*layers), nn.Linear(4, 2))  # layer_decay counts
        optimizer = optim.build_optimizer(model, options)
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        assert max(group["lr"] for group in optimizer.param_groups) == options.get("lr", 0.001)

    def test_says_why_it_chose(self, name: str) -> None:
        recipe = load(name)
        for key in recipe.row.chosen:
            recipe.get(key)
        reasons = [*recipe.row.chosen.values(), *recipe.row.unpublished.values()]
        assert all(reason.strip() for reason in reasons)

    def test_can_follow_the_other_source(self, name: str) -> None:
        recipe = load(name)
        for discrepancy in recipe.row.discrepancies:
            assert discrepancy.follow in (None, "table", "readme", "settings", "log"), discrepancy
        for overrides in together(recipe.row):
            other = ledger.load(name, overrides)
            for override in overrides:
                key = override.split("=")[0]
                assert value(other, key) != value(recipe, key), f"{override} changes nothing"

    def test_agrees_with_its_siblings(self, name: str) -> None:
        for sibling in load(name).row.siblings:
            other = load(sibling.row)
            [back] = [each for each in other.row.siblings if each.row == name]
            assert (back.since, back.until) == (sibling.since, sibling.until)
            assert sibling.since <= sibling.until
            peak = load(name).get("optimizer.lr")
            pairs = zip(*(rates(load(row), sibling.until + 1) for row in (name, sibling.row)), strict=True)
            apart = [abs(a - b) / peak for a, b in pairs]
            assert max(apart[:-1]) < 1e-3  # what the warm-up begins at may differ
            assert apart[-1] > 1e-3, f"they agree beyond {sibling.until}"

    def test_knows_its_files(self, name: str, released: Path) -> None:
        known = sums(released)
        for file in load(name).row.files:
            assert known[file.path] == file.sha256, file.path


def together(row: Row) -> list[list[str]]:
    """The overrides of all discrepancies in as few lists as have no key twice."""
    lists: list[list[str]] = []
    for override in (override for discrepancy in row.discrepancies for override in discrepancy.instead):
        free = (each for each in lists if override.split("=")[0] not in [o.split("=")[0] for o in each])
        next(free, lists.append([]) or lists[-1]).append(override)
    return [each for each in lists if each]


def value(recipe: Recipe, key: str) -> Any:
    """The value of a key of the configuration or of the row."""
    return OmegaConf.select(OmegaConf.create({**recipe.config, "row": asdict(recipe.row)}), key.lstrip("+"))


def rates(recipe: Recipe, last: int) -> list[float]:
    """Learning rates at positions 0 to `last` of a row's log: steps if the row is in steps, else epochs."""
    config = config_of(recipe)
    scale = 1 if config.steps else 100
    lr = config.optimizer["lr"]
    multiplier = build_schedule(config.schedule, lr, config.epochs, scale, config.steps)
    return [lr * multiplier(position * scale) for position in range(last + 1)]


def test_every_released_file_is_named_by_a_row(released: Path) -> None:
    named = {file.path for name in NAMES for file in load(name).row.files}
    assert sums(released).keys() - named == {"LICENSE"}


@pytest.mark.parametrize("name", IMAGENET)
def test_logs_are_as_the_rows_say(name: str, released: Path) -> None:
    row = load(name).row
    log = read_or_skip(row)
    assert [file.records for file in row.logs] == [len(log.table) + log.repeated]
    assert set(row.track.values()) <= set(log.table)
    [figure] = row.published
    series = log.series(figure.column or "")
    assert (series.max(), series.iloc[-1]) == (figure.best, figure.final)
    for sibling in row.siblings:
        agree_until(log, read_or_skip(load(sibling.row).row), sibling)


def read_or_skip(row: Row) -> Log:
    for file in row.logs:
        try:
            locate(file)
        except LogError as error:
            pytest.skip(str(error))
    return read_log(row)


def agree_until(log: Log, other: Log, sibling: Sibling) -> None:
    ours, theirs = (each.series("eval_loss") for each in (log, other))
    same = [ours[epoch] == theirs[epoch] for epoch in range(sibling.until + 1)]
    assert all(same[: sibling.since])
    assert not any(same[sibling.since :])


@pytest.mark.parametrize("name", [*IMAGENET, *FINE_TUNING])
def test_vision_takes_the_row(name: str) -> None:
    recipe = load(name)
    config = config_of(recipe, VisionConfig)
    config.check()
    assert {field.name for field in fields(VisionConfig)} - {"row"} == recipe.config.keys()
    assert timm.is_model(config.model.name)


@pytest.mark.parametrize("name", [*IMAGENET, *PRETRAINING, *FINE_TUNING])
def test_samples_are_those_of_whole_batches(name: str) -> None:
    recipe = load(name)
    config = config_of(recipe)
    epochs = config.epochs + config.schedule.cooldown_epochs
    assert recipe.row.cost is not None
    assert recipe.row.cost.samples == IMAGES // config.batch_size * config.batch_size * epochs


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
        model = recipe.config["model"]
        assert recipe.row.cost is not None
        stated = recipe.row.parameters, recipe.row.cost.forward_flops
        if str(model) not in counted:
            with torch.device("meta"):
                counted[str(model)] = count(timm.create_model(model["name"], **model["kwargs"]))
        assert stated == counted[str(model)], name


@pytest.mark.parametrize("name", PRETRAINING)
def test_parameters_and_operations_are_those_of_transformers(name: str) -> None:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

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
    for name in (name for name in NAMES if name.startswith("memory/")):
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


@pytest.mark.parametrize(
    ("published", "best", "final", "shows"),
    [
        (78.1, 78.176, 78.07, "final"),
        (80.0, 80.006, 79.86, "best"),
        (79.6, 79.61, 79.59, "both"),
        (80.7, 80.92, 80.872, "neither"),
        (81.6, 81.55, 81.454, "best"),  # half goes up,
        (81.5, 81.55, 81.55, "neither"),  # and up alone
        (24.2, 24.264, 24.264, "neither"),
        (83.8, None, None, "unknown"),
        (83.8, 83.8, float("nan"), "best"),
        (83.8, float("inf"), 83.75, "final"),
    ],
)
def test_what_a_figure_shows(published: float, best: float | None, final: float | None, shows: str) -> None:
    assert Figure("accuracy", published, "%", best=best, final=final).shows == shows


def test_status() -> None:
    row = Row(name="a/b", script="vision/train.py")
    assert row.status == "runnable"
    row.waits_for = "weights"
    assert row.status == "not runnable yet: it waits for weights"
    row.script = "vision/none.py"
    assert row.status == "not runnable yet: vision/none.py is to come"
    row.not_runnable = "no data"
    assert row.status == "not runnable: no data"


def test_unknown_row() -> None:
    with pytest.raises(
        UserError, match=r"^imagenet/vit_s_15: no such row; .*did you mean imagenet/vit_s_150\?"
    ):
        ledger.load("imagenet/vit_s_15")


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("  title:", "  titel:", "row.titel: no such key; did you mean title?"),
        ("  title: ViT-S, 150 epochs, setting I\n", "", "title: .*missing mandatory value"),
        ("epochs: 150\n", "epochs: many\n", "epochs: Value 'many' of type 'str' could not be converted"),
        ("records: 170", "records: all", "records: Value 'all' of type 'str' could not be converted"),
        ("  mixup:", "  mixupp:", "augment.mixupp: no such key; did you mean mixup?"),
        ("  title:", "  title: [", "while parsing a flow sequence .* line 18"),
        ("imagenet/_vit_s", "imagenet/_vit", "No such file .*_vit.yaml"),
        ("name: imagenet/vit_s_150_i", "name: imagenet/vit_s", "row.name is imagenet/vit_s"),
    ],
)
def test_bad_row(good: str, bad: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "CONFIGS", shutil.copytree(CONFIGS, tmp_path / "configs"))
    path = tmp_path / "configs" / "paper" / "imagenet" / "vit_s_150_i.yaml"
    assert good in path.read_text()
    path.write_text(path.read_text().replace(good, bad, 1))
    with pytest.raises(UserError, match=f"^configs/paper/imagenet/vit_s_150_i.yaml: .*{message}") as caught:
        ledger.load("imagenet/vit_s_150_i")
    assert "\n" not in str(caught.value)


def test_bad_override() -> None:
    with pytest.raises(
        UserError, match=r"^configs/paper/.* with epoch=3: epoch: no such key; did you mean epochs"
    ):
        ledger.load("imagenet/vit_s_150_i", ["epoch=3"])
