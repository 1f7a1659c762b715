"""Our optimizers under the names by which timm, mmengine, NeMo and the Trainer choose one."""

import sys
from dataclasses import dataclass, fields
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
        ("adan", {"adam_beta1": 0.5, "adam_epsilon": 1e-4}, {}, {"betas": (0.98, 0.92, 0.99), "eps": 1e-4}),
        ("adamw", {"adam_beta2": 0.95}, {}, {"betas": (0.9, 0.95), "eps": 1e-8}),
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
