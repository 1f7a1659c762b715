"""Rows for language in their recipes: schemas, lengths of epochs as the recipes plan them, and proxies."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from nlp import pretrain_bert, train_lstm, train_transformer_xl
from nlp.config.bert import BertConfig
from nlp.config.glue import GlueConfig
from nlp.config.lstm import LSTMTrainConfig
from nlp.config.transformer_xl import TransformerXLConfig
from repro.ledger import rows
from repro.runs import flatten
from repro.text.streams import Streams
from repro.train.config import TrainConfig
from repro.train.task import Task
from repro.verify.models import build, count

SCHEMAS: dict[str, type[TrainConfig]] = {
    "bert": BertConfig,
    "glue": GlueConfig,
    "lstm": LSTMTrainConfig,
    "wikitext103": TransformerXLConfig,
}
ROWS = [name for name in rows.names() if name.split("/")[0] in SCHEMAS]
PTB = 929_589  # tokens for training

load = cache(rows.load)


def config_of(name: str, *overrides: str) -> Any:
    """What a recipe gets from the command line, typed."""
    start = ["model.checkpoint=scratch"] if name.startswith("glue/") else []
    schema = OmegaConf.structured(SCHEMAS[name.split("/")[0]])
    return OmegaConf.to_object(OmegaConf.merge(schema, load(name, (*start, *overrides)).config))


@pytest.mark.parametrize("name", ROWS)
def test_the_recipe_takes_the_row(name: str) -> None:
    row = load(name).row
    assert row.status == "runnable"
    config_of(name).check()


@pytest.mark.parametrize("name", ROWS)
def test_the_model_of_the_row_is_counted(name: str) -> None:
    model = build(load(name))
    assert model is not None
    assert count(model) == load(name).row.parameters
    if name.startswith("wikitext103/"):
        assert count(model.get_submodule("layers")) == 41_066_400  # as the logs have it


def planned(task: Callable[..., Task], data: Any, config: TrainConfig) -> list[int]:
    """The sizes of an epoch's steps as a recipe plans them, without its text."""
    return [len(step) for step in task(config, synthetic=True).plan(data, config)(0)]


def text(tokens: int) -> np.ndarray:
    """As many tokens, in the memory of one."""
    return np.broadcast_to(np.int32(0), tokens)


def test_updates_of_an_epoch_of_bert() -> None:
    config = config_of("bert/adan")
    sequences = config.data.train_sequences
    steps = planned(pretrain_bert.Pretraining, range(sequences), config)
    assert len(steps) == math.ceil(sequences / config.batch_size) == 51_488
    assert (set(steps[:-1]), sum(steps)) == ({256}, 13_180_750)


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith("wikitext103/")])
def test_updates_of_an_epoch_of_transformer_xl(name: str) -> None:
    config = config_of(name)
    streams = Streams(text(config.train_tokens), config.batch_size, config.tgt_len)
    assert planned(train_transformer_xl.LanguageModelling, streams, config) == [60] * 11_470


def test_updates_of_an_epoch_of_the_lstms() -> None:
    config = config_of("lstm/lstm_3_adan")
    streams = Streams(text(PTB), config.batch_size, config.data.tgt_len)
    assert planned(train_lstm.LanguageModelling, streams, config) == [20] * 664


@pytest.mark.parametrize("name", [name for name in ROWS if load(name).row.proxy is not None])
def test_a_proxy_is_small_and_keeps_what_makes_the_row(name: str) -> None:
    """It changes sizes and lengths, for a reason, and of the optimizer the learning rate alone."""
    row = load(name).row
    proxy = load(name, (f"+proxy={row.proxy}",))
    assert (proxy.row.scale, row.scale) == ("proxy", "paper")
    config_of(name, f"+proxy={row.proxy}").check()
    known = {"vocab_size": 2000, "num_labels": 2}  # what the text and the task would say
    options = {key: known.get(key, value) for key, value in proxy.config["model"].items()}
    tokenizer = proxy.config["tokenizer"] | {"vocab_size": 8192}
    model = build(replace(proxy, config=proxy.config | {"model": options, "tokenizer": tokenizer}))
    assert model is not None
    assert count(model) < 5_000_000 or row.after is not None  # whose checkpoint brings its own sizes
    before, after = flatten(load(name).config), flatten(proxy.config)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    kept = {"betas", "eps", "weight_decay", "max_grad_norm", "no_prox", "decay_bias_and_norm", "name"}
    assert not changed & {f"optimizer.{key}" for key in kept}
    assert "schedule.name" not in changed
    # sizes, how often it is looked at, and what follows from the task
    free = ("model.", "data.", "tokenizer.", "run.", "evaluation.", "eval_", "loss")
    reasons = proxy.row.chosen
    for key in changed - {"workers"}:
        parents = {key[:end] for end in (i for i, c in enumerate(key) if c == ".")} | {key}
        assert key.startswith(free) or parents & reasons.keys(), key
