"""Our optimizers under the names by which timm, mmengine, NeMo and the Trainer choose one."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import Trainer, TrainingArguments

import adan_optim
from adan_optim.interop.integrations import register, trainer_arguments

NAMES = list(adan_optim.OPTIMIZERS)


def test_registering_with_timm_twice_is_once(caplog):
    import timm.optim

    register("timm")
    register("timm")
    ours = dict(timm.optim.list_optimizers("adan-optim.*", with_description=True))
    assert list(ours) == sorted(f"adan-optim.{name.replace('_', '-')}" for name in NAMES)
    assert all(
        adan_optim.CARDS[key.removeprefix("adan-optim.").replace("-", "_")].when in text
        for key, text in ours.items()
    )
    assert not caplog.records
    assert (
        type(timm.optim.create_optimizer_v2(torch.nn.Linear(2, 2), "adan")) is timm.optim.Adan
    )  # timm's own, untouched
    built = timm.optim.create_optimizer_v2(
        torch.nn.Linear(2, 2), "adan-optim.adan", lr=1e-3, betas=(0.9, 0.8, 0.7), eps=1e-7
    )
    assert type(built) is adan_optim.Adan
    assert built.param_groups[0]["betas"] == (0.9, 0.8, 0.7)


def module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: object) -> ModuleType:
    """A stand-in for a module of a framework that the tests do not install."""
    made = ModuleType(name)
    vars(made).update(contents)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def test_mmengine(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the interface of mmengine 0.10.7, whose registry refuses names that are taken."""

    class Registry(dict):
        def register_module(self, name: str, module: type) -> None:
            assert name not in self
            assert "." not in name  # which is the end of a scope
            self[name] = module

    registry = Registry()
    module(monkeypatch, "mmengine")
    module(monkeypatch, "mmengine.registry", OPTIMIZERS=registry)
    register("mmengine")
    register("mmengine")
    assert registry["AdanOptimAdan"] is adan_optim.Adan
    assert set(registry.values()) == set(adan_optim.OPTIMIZERS.values())


def test_nemo(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the interface of NeMo's nemo/core/optim/optimizers.py, which refuses names that are taken."""

    @dataclass
    class OptimizerParams:
        lr: object = "???"

    configs: dict[str, type] = {}

    def register_optimizer(name: str, optimizer: type, optimizer_params: type) -> None:
        assert name not in optimizers.AVAILABLE_OPTIMIZERS
        assert f"{optimizer.__name__}_params" not in configs
        optimizers.AVAILABLE_OPTIMIZERS[name] = optimizer
        configs[f"{optimizer.__name__}_params"] = optimizer_params

    taken = {"AVAILABLE_OPTIMIZERS": {"adan": object}, "register_optimizer": register_optimizer}
    optimizers = module(monkeypatch, "nemo.core.optim.optimizers", **taken)
    for name in ("nemo", "nemo.core"):
        module(monkeypatch, name)
    module(monkeypatch, "nemo.core.config", OptimizerParams=OptimizerParams)
    module(monkeypatch, "nemo.core.optim", optimizers=optimizers)
    register("nemo")
    register("nemo")
    assert optimizers.AVAILABLE_OPTIMIZERS["adan"] is object
    for name, cls in adan_optim.OPTIMIZERS.items():
        assert optimizers.AVAILABLE_OPTIMIZERS[f"adan_optim_{name}"] is cls
        config = configs[f"{cls.__name__}_params"]
        assert issubclass(config, OptimizerParams)
        optimizer = cls([torch.nn.Parameter(torch.ones(3, 2))], **vars(config()))
        assert {"lr", "caution"} <= {item.name for item in fields(config)} & set(optimizer.defaults)


def test_unknown_and_missing_frameworks() -> None:
    with pytest.raises(ValueError, match="framework='kohya': use 'timm', 'mmengine' or 'nemo'"):
        register("kohya")
    with pytest.raises(ImportError, match="nemo"):
        register("nemo")


@pytest.mark.parametrize(
    ("name", "changed", "options", "expected"),
    [
        ("adan", {}, {}, {"betas": (0.98, 0.92, 0.99), "eps": 1e-8}),
        ("adan", {"adam_epsilon": 1e-4}, {}, {"betas": (0.98, 0.92, 0.99), "eps": 1e-4}),
        ("adan", {"adam_beta1": 0.5}, {"betas": (0.9, 0.8, 0.7)}, {"betas": (0.9, 0.8, 0.7)}),
        ("adamw", {"adam_beta2": 0.95}, {}, {"betas": (0.9, 0.95), "eps": 1e-8}),
        ("adamw", {"adam_beta2": 0.95}, {"betas": (0.8, 0.9)}, {"betas": (0.8, 0.9)}),
        ("lion", {}, {"betas": (0.8, 0.9)}, {"betas": (0.8, 0.9)}),
        ("torch.optim.SGD", {}, {"momentum": 0.5}, {"momentum": 0.5}),
    ],
)
def test_the_trainers_own_settings(tmp_path, name, changed, options, expected) -> None:
    settings = TrainingArguments(tmp_path, learning_rate=0.25, weight_decay=0.5, use_cpu=True, **changed)
    plug = trainer_arguments(settings, name, **options)
    trainer = Trainer(torch.nn.Linear(2, 2), settings, optimizer_cls_and_kwargs=plug)
    optimizer = trainer.create_optimizer()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    for group in optimizer.param_groups:
        assert group["lr"] == 0.25
        assert {key: group[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        (
            "adan",
            {"adam_beta1": 0.5, "adam_epsilon": 1e-4},
            r"Adan ignores adam_beta1=0.5, adam_beta2=0.999: .* betas=\(0.98, 0.92, 0.99\); pass betas=",
        ),
        (
            "torch.optim.SGD",
            {"adam_beta2": 0.9},
            r"SGD ignores adam_beta1=0.9, adam_beta2=0.9: .*it has none",
        ),
        ("lion", {"adam_epsilon": 1e-4}, r"Lion ignores adam_epsilon=0.0001: it has no eps"),
    ],
)
def test_settings_that_an_optimizer_has_no_use_for(tmp_path, name, changed, message) -> None:
    """Two betas do not make Adan's three, so they are ignored, but not in silence; the rest is taken."""
    settings = TrainingArguments(tmp_path, learning_rate=0.25, use_cpu=True, **changed)
    with pytest.warns(UserWarning, match=message) as warned:
        _, options = trainer_arguments(settings, name)
    assert warned[0].filename == __file__
    assert "betas" not in options
    assert options.get("eps") == (1e-4 if name == "adan" else None)


class Regression(torch.nn.Module):
    """A linear model as the Trainer expects it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.linear(x) - labels).square().mean()}


def trained(folder: Path, name: str | None, **changed: float) -> list[torch.Tensor]:
    """The parameters after five steps of a Trainer with an optimizer of ours, or its own AdamW."""
    rows = [{"x": torch.tensor([i, 1.0, -i]), "labels": torch.tensor([2.0 * i])} for i in range(8)]
    settings = TrainingArguments(
        folder, learning_rate=0.05, weight_decay=0.5, max_steps=5, per_device_train_batch_size=4,
        max_grad_norm=0, optim="adamw_torch", report_to="none", save_strategy="no", disable_tqdm=True,
        use_cpu=True, seed=1, **changed,
    )  # fmt: skip
    plug = {} if name is None else {"optimizer_cls_and_kwargs": trainer_arguments(settings, name)}
    model = Regression()
    Trainer(model, settings, train_dataset=rows, **plug).train()
    return [p.detach().cpu() for p in model.parameters()]


def test_a_trainer_trains_with_its_arguments(tmp_path: Path) -> None:
    """Our AdamW ends where the Trainer's own does, with changed settings as well; Adan, elsewhere."""
    changed = {"adam_beta1": 0.6, "adam_beta2": 0.7, "adam_epsilon": 10.0}
    ends = {}
    for case, values in {"defaults": {}, "changed": changed}.items():
        ends[case] = trained(tmp_path, None, **values)
        for ours, theirs in zip(trained(tmp_path, "adamw", **values), ends[case], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ends["defaults"][0], ends["changed"][0], rtol=1e-2)
    assert not torch.allclose(ends["defaults"][0], trained(tmp_path, "adan")[0], rtol=1e-2)
