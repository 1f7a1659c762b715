"""`adan_optim.adan_from_adamw`: every number of the advice; settings taken as they are."""

import inspect

import pytest
import torch
import yaml

import adan_optim
from adan_optim.interop.advice import REGIMES


@pytest.mark.parametrize(
    ("regime", "options", "warmup"),
    [
        ("pretrain", dict(lr=5e-3, weight_decay=0.005, betas=(0.98, 0.92, 0.99), no_prox=False), 1000),
        ("finetune", dict(lr=3e-3, weight_decay=0.025, betas=(0.98, 0.92, 0.99), no_prox=False), 500),
        ("diffusion", dict(lr=2e-3, weight_decay=0.05, betas=(0.98, 0.95, 0.95), no_prox=True), 500),
    ],
)
def test_the_advice(regime, options, warmup):
    """The issues of sail-sg/Adan: 29 for pretrain, 43 for finetune, 48 for diffusion."""
    settings = adan_optim.adan_from_adamw(lr=1e-3, weight_decay=0.05, warmup=500, regime=regime)
    assert settings.options == options
    assert settings.warmup == warmup
    assert isinstance(settings.warmup, int)
    assert settings.reasons.keys() == {*options, "warmup"}
    assert {"pretrain": "issue 29", "finetune": "issue 43", "diffusion": "issue 48"}[
        regime
    ] in settings.reasons["lr"]


@pytest.mark.parametrize("regime", REGIMES)
def test_the_options_build_an_optimizer(regime):
    options = adan_optim.adan_from_adamw(lr=1e-3, regime=regime).options
    model = torch.nn.Linear(3, 2)
    assert adan_optim.Adan(model.parameters(), **options).param_groups[0].items() >= options.items()
    group = adan_optim.build_optimizer(model, "adan", **options).param_groups[0]
    assert group["betas"] == options["betas"]


@pytest.mark.parametrize("regime", REGIMES)
def test_what_is_printed(regime):
    """The table has a line for each setting with its reason; the YAML reads as the options."""
    settings = adan_optim.adan_from_adamw(lr=1e-5, weight_decay=0.01, warmup=1.5, regime=regime)
    lines = str(settings).splitlines()
    assert len(lines) == 5
    for line, (name, reason) in zip(lines, settings.reasons.items(), strict=True):
        assert line.startswith(name)
        assert line.endswith(reason)
    read = yaml.safe_load(settings.yaml)
    assert read.pop("name") == "adan"
    assert {**read, "betas": tuple(read["betas"])} == settings.options


def test_a_learning_rate_that_is_a_tensor():
    assert adan_optim.adan_from_adamw(lr=torch.tensor(0.5)).options["lr"] == torch.tensor(2.5)


def test_the_docstrings_table_is_the_advice():
    rows = [
        line.split("|")
        for line in inspect.getdoc(adan_optim.adan_from_adamw).splitlines()
        if line.startswith("| ")
    ]
    assert [row[1].strip() for row in rows[1:]] == list(REGIMES)
    for row, advice in zip(rows[1:], REGIMES.values(), strict=True):
        factors = [float(cell.split()[1]) for cell in row[2:5]]
        assert factors == [advice[name][0] for name in ("lr", "weight_decay", "warmup")]
        assert all(str(beta) in row[5] for beta in advice["betas"][0])
        assert row[6].strip() == str(advice["no_prox"][0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(lr=1e-3, regime="rl"), ValueError, "regime='rl': use 'pretrain', 'finetune' or 'diffusion'"),
        (dict(lr=-1.0), ValueError, "lr=-1.0: must be a finite number >= 0"),
        (dict(lr="1e-3"), TypeError, "lr='1e-3': give a number >= 0"),
        (dict(lr=1e-3, weight_decay=-0.1), ValueError, "weight_decay=-0.1: must be"),
        (dict(lr=1e-3, warmup=-1), ValueError, "warmup=-1: must be"),
        (dict(lr=1e-3, warmup=True), TypeError, "warmup=True: give a number"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        adan_optim.adan_from_adamw(**arguments)
