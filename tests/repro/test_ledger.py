"""The ledger: every row fits its schema, agrees with the released files, and can be overridden."""

import shutil
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import adan_optim
from repro.errors import UserError
from repro.ledger import rows
from repro.ledger.rows import CONFIGS, Discrepancy, Figure, Recipe, Row
from repro.train.config import TrainConfig
from repro.train.schedules import build_schedule

NAMES = rows.names()
load = cache(rows.load)


def config_of(recipe: Recipe) -> TrainConfig:
    """What the loop knows of a row's configuration, typed; an error names a key or a value that is wrong."""
    known = {field.name for field in fields(TrainConfig)}
    values = {key: value for key, value in recipe.config.items() if key in known}
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), values))
    assert isinstance(config, TrainConfig)
    return config


def sums(released: Path) -> dict[str, str]:
    """Path and SHA-256 of every released file."""
    lines = (released / "SHA256SUMS").read_text().splitlines()
    return {path: sha256 for sha256, path in (line.split() for line in lines)}


@pytest.mark.parametrize("name", NAMES)
class TestEveryRow:
    def test_loads_under_its_name(self, name: str) -> None:
        row = load(name).row
        assert row.name == name
        assert row.scale == "paper"
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
        options = {
            key: value for key, value in options.items() if key not in ("partition", "lr_scales")
        }  # names of its own model's
        layers = [nn.Linear(4, 4) for _ in range(2)]
        model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(*layers), nn.Linear(4, 2))  # layer_decay counts
        optimizer = adan_optim.build_optimizer(model, options)
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        assert max(group["lr"] for group in optimizer.param_groups) == options.get("lr", 0.001)

    def test_has_a_run_for_each_value_of_what_it_sweeps(self, name: str) -> None:
        recipe = load(name)
        for key, values in recipe.row.sweep.items():
            assert recipe.get(key) == values[0]
            assert len(values) == len(set(values))

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
        for discrepancies in together(recipe.row):
            other = rows.load(name, [override for each in discrepancies for override in each.instead])
            for each in discrepancies:
                changed = [key for key in keys(each) if value(other, key) != value(recipe, key)]
                assert changed, f"{each.instead} changes nothing"

    def test_agrees_with_its_siblings(self, name: str) -> None:
        for sibling in load(name).row.siblings:
            other = load(sibling.row)
            [back] = [each for each in other.row.siblings if each.row == name]
            assert back.until == sibling.until
            peak = load(name).get("optimizer.lr")
            pairs = zip(*(rates(load(row), sibling.until + 1) for row in (name, sibling.row)), strict=True)
            apart = [abs(a - b) / peak for a, b in pairs]
            assert max(apart[:-1]) < 1e-3  # what the warm-up begins at may differ
            assert apart[-1] > max(apart[:-1]), f"they agree beyond {sibling.until}"

    def test_knows_its_files(self, name: str, released: Path) -> None:
        known = sums(released)
        for file in load(name).row.files:
            if file.kind == "other" and file.path not in known:  # the sums are those of logs and settings
                assert len(bytes.fromhex(file.sha256)) == 32
            else:
                assert known[file.path] == file.sha256, file.path


def keys(discrepancy: Discrepancy) -> list[str]:
    """What a discrepancy's overrides set or take away."""
    return [override.split("=")[0].lstrip("+~") for override in discrepancy.instead]


def together(row: Row) -> list[list[Discrepancy]]:
    """The discrepancies that have overrides, in as few groups as have no key twice."""
    groups: list[list[Discrepancy]] = []
    for discrepancy in (each for each in row.discrepancies if each.instead):
        taken = [{key for each in group for key in keys(each)} for group in groups]
        free = [
            group for group, used in zip(groups, taken, strict=True) if used.isdisjoint(keys(discrepancy))
        ]
        if free:
            free[0].append(discrepancy)
        else:
            groups.append([discrepancy])
    return groups


def value(recipe: Recipe, key: str) -> Any:
    """The value of a key of the configuration or of the row."""
    return OmegaConf.select(OmegaConf.create({**recipe.config, "row": asdict(recipe.row)}), key)


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


def test_unknown_row() -> None:
    with pytest.raises(
        UserError, match=r"^imagenet/vit_s_15: no such row; .*did you mean imagenet/vit_s_150\?"
    ):
        rows.load("imagenet/vit_s_15")


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
        (
            "title: ViT-S",
            "title: ViT-H",
            "row.title is 'ViT-H, 150 .* but row.model is 'ViT-S': .* all words",
        ),
        ("title: ViT-S", "title: ResNet-50", "row.title is 'ResNet-50, .* but row.model is 'ViT-S'"),
        (
            "title: ViT-S, 150 epochs",
            "title: ViT-S, 300 epochs",
            "row.title is 'ViT-S, 300 epochs, .* but epochs=150",
        ),
        ("title: ViT-S, 150 epochs", "title: ViT-S, 1,500 steps", "row.title is .* but steps=None"),
    ],
)
def test_bad_row(good: str, bad: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CONFIGS", shutil.copytree(CONFIGS, tmp_path / "configs"))
    path = tmp_path / "configs" / "paper" / "imagenet" / "vit_s_150_i.yaml"
    assert good in path.read_text()
    path.write_text(path.read_text().replace(good, bad, 1))
    with pytest.raises(UserError, match=f"^configs/paper/imagenet/vit_s_150_i.yaml: .*{message}") as caught:
        rows.load("imagenet/vit_s_150_i")
    assert "\n" not in str(caught.value)


def test_bad_override() -> None:
    with pytest.raises(
        UserError, match=r"^configs/paper/.* with epoch=3: epoch: no such key; did you mean epochs"
    ):
        rows.load("imagenet/vit_s_150_i", ["epoch=3"])
