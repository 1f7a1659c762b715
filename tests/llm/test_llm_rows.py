"""Rows for language models in their recipe: schemas, sizes, and proxies."""

from functools import cache
from typing import Any

import pytest
from omegaconf import OmegaConf

from llm.config.pretrain import LlmConfig
from repro.ledger import rows
from repro.verify.models import build, count

ROWS = [name for name in rows.names() if name.split("/")[0] in ("gpt2", "moe")]
load = cache(rows.load)


def config_of(name: str, *overrides: str) -> LlmConfig:
    """What the recipe gets from the command line, typed."""
    config: Any = OmegaConf.merge(OmegaConf.structured(LlmConfig), load(name, overrides).config)
    typed = OmegaConf.to_object(config)
    assert isinstance(typed, LlmConfig)
    typed.check()
    return typed


def test_rows() -> None:
    assert len(ROWS) == 16


@pytest.mark.parametrize("name", ROWS)
def test_the_recipe_takes_the_row(name: str) -> None:
    row, config = load(name).row, config_of(name)
    assert row.status == "runnable"
    assert config.optimizer["name"] == ("adan" if "adan" in name else "adamw")
    assert not config.schedule.warmup_epochs
    assert row.proxy == f"{name.split('/')[0]}_{name.rsplit('_', 1)[1] if 'moe' in name else name[5:9]}"


@pytest.mark.parametrize("name", [name for name in ROWS if "adan" in name])
def test_the_model_of_the_row_is_counted(name: str) -> None:
    model = build(load(name))
    assert model is not None
    assert count(model) == load(name).row.parameters


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("gpt2/adan_150k", ["optimizer.state_dtype=int8", "steps=300"]),
        ("gpt2/adam_300k", ["optimizer=adam_mini"]),
        ("moe/8x0.3b_30b_adan", ["optimizer.state_dtype=int8", "steps=300"]),
        ("moe/8x0.6b_300b_adamw", ["optimizer=adam_mini"]),
    ],
)
def test_proxies_are_a_word_apart(name: str, others: list[str]) -> None:
    row, proxy = load(name), f"+proxy={load(name).row.proxy}"
    base = config_of(name, proxy)
    assert load(name, (proxy,)).row.scale == "proxy"
    model = build(load(name, (proxy,)))
    assert model is not None
    assert 2e6 < count(model) < 4e6
    assert base.optimizer["betas"] == row.config["optimizer"]["betas"]
    assert base.optimizer["weight_decay"] == row.config["optimizer"]["weight_decay"]
    assert base.optimizer["lr"] > row.config["optimizer"]["lr"]
    assert {"name": base.model["name"]}.items() <= row.config["model"].items()
    for other in others:
        config = config_of(name, proxy, other)
        key, _, value = other.rpartition("=")
        if key == "optimizer":
            assert config.optimizer["name"] == value
            assert config.optimizer["lr"] == base.optimizer["lr"]
            assert config.optimizer["betas"] == base.optimizer["betas"]
        else:
            assert config != base


def test_a_row_has_nothing_of_the_default_model() -> None:
    moe = load("moe/8x0.1b_10b_adan").config["model"]
    assert "n_embd" not in moe
    assert (moe["num_local_experts"], moe["num_experts_per_tok"]) == (8, 2)
