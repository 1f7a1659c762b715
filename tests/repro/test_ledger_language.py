"""Rows of the ledger for language: what can be counted, and that nothing is guessed silently."""

import math
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from adan_optim import adan_from_adamw, build_optimizer
from repro.ledger.rows import CONFIGS, Recipe, load, names
from repro.train.config import TrainConfig
from repro.train.schedules import build_schedule

TABLES = ("bert", "glue", "gpt2", "lstm", "moe", "wikitext103")
ADAM_MINI = [name for name in names() if name.startswith(("adam_mini/gpt2", "adam_mini/llama"))]
ROWS = [*(name for name in names() if name.split("/")[0] in TABLES), *ADAM_MINI]
GLUE = [name for name in ROWS if name.startswith("glue/")]
LSTM = [name for name in ROWS if name.startswith("lstm/")]
MOE = [name for name in ROWS if name.startswith("moe/")]
NULL_IS_OFF = ("clip_grad", "eval_epochs", "eval_every")  # elsewhere null means: not known
HEADS: dict[str, Any] = {
    "adam_mini": AutoModelForCausalLM,
    "bert": AutoModelForMaskedLM,
    "glue": AutoModelForSequenceClassification,
    "gpt2": AutoModelForCausalLM,
    "moe": AutoModelForCausalLM,
}


@cache
def recipe(name: str) -> Recipe:
    return load(name)


def build(name: str, **changes: Any) -> nn.Module:
    """The model of a row, without its weights."""
    options = {**recipe(name).config["model"], **changes}
    options.pop("checkpoint", None)
    config = AutoConfig.for_model(options.pop("name"), attn_implementation="eager", **options)
    with torch.device("meta"):
        model = HEADS[name.split("/")[0]].from_config(config)
    assert isinstance(model, nn.Module)
    return model


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values."""
    if not isinstance(node, dict):
        yield prefix, node
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else key)


def written(name: str) -> Iterator[tuple[str, Any]]:
    """What a row's file and those that it builds on say themselves, dotted."""
    content = yaml.safe_load((CONFIGS / "paper" / f"{name}.yaml").read_text())
    for parent in content.pop("defaults", []):
        if isinstance(parent, str) and parent.startswith("/paper/"):
            yield from written(parent.removeprefix("/paper/"))
    content.pop("row", None)
    yield from leaves(content)


def said(key: str, reasons: dict[str, str]) -> bool:
    """Whether there is a reason for this key, or for a node that it is in."""
    return any(key == reason or key.startswith(f"{reason}.") for reason in reasons)


def train_config(config: dict[str, Any]) -> TrainConfig:
    """The part of a row's configuration that the training loop reads."""
    known = {field.name for field in fields(TrainConfig)}
    merged = OmegaConf.merge(
        OmegaConf.structured(TrainConfig), {key: value for key, value in config.items() if key in known}
    )
    typed = OmegaConf.to_object(merged)
    assert isinstance(typed, TrainConfig)
    return typed


def test_every_published_row_is_there() -> None:
    tasks = ("cola", "mnli", "qnli", "qqp", "rte", "sst2", "stsb")
    tokens = {"8x0.1b": ("10b", "30b", "100b"), "8x0.3b": ("30b", "100b", "300b"), "8x0.6b": ("300b",)}
    assert set(ROWS) == {
        *(f"adam_mini/gpt2_{size}{rest}" for size in ("small", "medium", "xl") for rest in ("", "_adamw")),
        *(f"adam_mini/llama{size}" for size in ("_1b", "2_13b", "3_8b")),
        *(f"bert/{name}" for name in ("adam", "adan")),
        *(f"glue/{task}{optimizer}" for task in tasks for optimizer in ("", "_adam")),
        *(f"gpt2/{name}" for name in ("adam_300k", "adan_150k")),
        *(f"lstm/lstm_{layers}_{optimizer}" for layers in "123" for optimizer in ("adam", "adamw", "adan")),
        *(f"moe/{size}_{t}_{o}" for size, all_ in tokens.items() for t in all_ for o in ("adamw", "adan")),
        *(f"wikitext103/{name}" for name in ("adam_200k", "adan_50k", "adan_100k", "adan_200k")),
    }


@pytest.mark.parametrize("name", ROWS)
def test_the_loop_and_the_optimizer_take_the_row(name: str) -> None:
    config = train_config(recipe(name).config)
    config.check()
    build_optimizer(nn.Linear(2, 2), {key: x for key, x in config.optimizer.items() if key != "partition"})
    lr = config.optimizer["lr"]
    multiplier = build_schedule(config.schedule, lr, config.epochs, 1, config.steps)
    if name in LSTM:
        assert [multiplier(epoch) for epoch in (99, 100, 145)] == pytest.approx([1, 0.1, 0.01])
        return
    assert config.steps is not None
    assert multiplier(config.steps) * lr == pytest.approx(config.schedule.min_lr, abs=1e-12)
    warmup = config.schedule.warmup_steps
    assert warmup is not None
    assert multiplier(warmup // 2) == pytest.approx(0.5 if warmup else 1.0)


@pytest.mark.parametrize("name", [*ROWS[:2], *GLUE, "gpt2/adan_150k", *MOE[::2], *ADAM_MINI])
def test_transformers_has_as_many_parameters(name: str) -> None:
    assert count(build(name)) == recipe(name).row.parameters


def test_fairseqs_count_is_that_of_the_encoders_layers_twice() -> None:
    layers = build("bert/adan").get_submodule("roberta.encoder.layer")
    without_norms = sum(p.numel() for name, p in layers.named_parameters() if "LayerNorm" not in name)
    effective = recipe("bert/adan").row.parameters
    assert effective is not None
    assert effective + without_norms == 209_714_265


def test_transformer_xl_has_as_many_parameters() -> None:
    config = recipe("wikitext103/adan_100k").config
    model = config["model"]
    width, inner, heads = model["d_model"], model["d_inner"], model["n_head"] * model["d_head"]
    words, clusters = config["tokenizer"]["vocab_size"], len(model["cutoffs"])
    attention = 5 * width * heads + 2 * width  # queries, keys, values, positions, output, and a norm
    layer = attention + 2 * width * inner + inner + width + 2 * width
    assert model["n_layer"] * layer == 41_066_400  # as the log has it
    softmax = words * width + words + clusters * (width + 1)
    assert model["n_layer"] * layer + softmax + 2 * heads == recipe("wikitext103/adan_100k").row.parameters


@pytest.mark.parametrize(("size", "total", "one"), [("0.1b", 0.5, 0.1), ("0.3b", 2, 0.3), ("0.6b", 4, 0.6)])
def test_mixtures_have_the_published_sizes(size: str, total: float, one: float) -> None:
    [name, *_] = [name for name in MOE if f"8x{size}_" in name]
    parameters = recipe(name).row.parameters
    assert parameters is not None
    assert parameters == pytest.approx(total * 1e9, rel=0.1)
    dense = build(name, num_local_experts=1, num_experts_per_tok=1)
    model = recipe(name).config["model"]
    assert round((count(dense) - 2 * model["vocab_size"] * model["hidden_size"]) / 1e9, 1) == one


def test_steps_epochs_and_tokens() -> None:
    bert = recipe("bert/adan").config
    assert bert["data"]["train_sequences"] == 13_244_396 - 63_646
    assert math.ceil(bert["data"]["train_sequences"] / bert["batch_size"]) == 51_488
    assert bert["data"]["valid_share"] == pytest.approx(1_066_112 / (1_066_112 + 214_960_826), rel=1e-3)

    for name in (name for name in ROWS if name.startswith("wikitext103/")):
        config = recipe(name).config
        assert config["batch_size"] * config["tgt_len"] == 9_000
        stream = config["train_tokens"] // config["batch_size"]
        assert math.ceil((stream - 1) / config["tgt_len"]) == 11_470  # the last word has no next one

    for name, total in (("gpt2/adan_150k", 122_880_000_000), ("gpt2/adam_300k", 245_760_000_000)):
        config = recipe(name).config
        assert config["batch_size"] * config["data"]["sequence_length"] == 819_200
        assert config["batch_size"] * config["data"]["sequence_length"] * config["steps"] == total

    for name in ADAM_MINI:  # as published: 480 sequences on 4 GPUs, of 60, 16 (15 here) and 10
        config = recipe(name).config
        if name.startswith("adam_mini/gpt2"):
            assert config["batch_size"] * config["data"]["sequence_length"] == 491_520
            assert config["batch_size"] / config["gradient_accumulation_steps"] / 4 in (60, 15, 10)
            assert config["stop_after"] == (None if "small" in name else 50_000)

    for name in MOE:
        config = recipe(name).config
        tokens = float(name.split("_")[1].removesuffix("b")) * 1e9
        assert config["data"]["tokens"] == tokens
        assert (
            math.ceil(tokens / (config["batch_size"] * config["data"]["sequence_length"])) == config["steps"]
        )


@pytest.mark.parametrize("name", ROWS)
def test_nothing_unknown_is_hidden(name: str) -> None:
    row = recipe(name).row
    unknown = {key for key, value in written(name) if value is None and key not in NULL_IS_OFF}
    assert unknown <= row.unpublished.keys()
    for key in row.chosen:
        recipe(name).get(key)  # KeyError: a reason for what is not there


@pytest.mark.parametrize("name", [*MOE, "gpt2/adam_300k"])
def test_what_was_not_published_is_chosen_with_a_reason(name: str) -> None:
    published = {
        "moe": ("data.name", "data.tokens", "optimizer.name"),
        "gpt2": ("steps", "data", "tokenizer", "model", "sampling"),  # the two rows share these
    }[name.split("/")[0]]
    for key, _ in written(name):
        assert said(key, recipe(name).row.chosen) or said(key, dict.fromkeys(published, "")), key


def test_adam_minis_baseline_differs_by_the_optimizer_alone() -> None:
    for name in (name for name in ADAM_MINI if name.endswith("_adamw")):
        mini, adamw = recipe(name.removesuffix("_adamw")).config, recipe(name).config
        shared = ("lr", "betas", "eps", "weight_decay", "decay_bias_and_norm")
        assert {key: adamw["optimizer"][key] for key in shared} == {
            key: mini["optimizer"][key] for key in shared
        }
        assert (mini["optimizer"].pop("name"), adamw["optimizer"].pop("name")) == ("adam_mini", "adamw")
        assert mini | {"optimizer": None} == adamw | {"optimizer": None}


@pytest.mark.parametrize("name", [name for name in MOE if name.endswith("_adan")])
def test_adan_of_a_mixture_is_the_authors_advice(name: str) -> None:
    adamw = recipe(f"{name}w".replace("_adanw", "_adamw")).config
    adan = recipe(name).config
    optimizer, warmup = adamw["optimizer"], adamw["schedule"]["warmup_steps"]
    advised = adan_from_adamw(lr=optimizer["lr"], weight_decay=optimizer["weight_decay"], warmup=warmup)
    assert {key: adan["optimizer"][key] for key in advised.options} == {
        **advised.options,
        "betas": list(advised.options["betas"]),
    }
    assert adan["schedule"]["warmup_steps"] == advised.warmup
    assert adan["schedule"]["min_lr"] == pytest.approx(adan["optimizer"]["lr"] / 10)


def flops(layers: int, width: int, matrices: int, tokens: int, head: float) -> float:
    """Of a forward pass: a token meets `matrices` numbers in a layer, `head` at the end, and all tokens."""
    return 2 * tokens * (layers * matrices + head) + 4 * layers * tokens**2 * width


def bert_flops(tokens: int, masked: float) -> float:
    return flops(12, 768, 4 * 768**2 + 2 * 768 * 3072, tokens, masked * (768**2 + 768 * 50265))


GPT2_FLOPS = flops(24, 1024, 12 * 1024**2, 2048, 1024 * 50048)


@pytest.mark.parametrize(
    ("name", "tokens", "expected"),
    [("bert/adan", 512, bert_flops(512, masked=1)), ("gpt2/adan_150k", 2048, GPT2_FLOPS)],
)
def test_the_formula_is_torchs_count(name: str, tokens: int, expected: float) -> None:
    model, counter = build(name), FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, tokens, dtype=torch.long, device="meta"))
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize("name", ROWS)
def test_costs(name: str) -> None:
    row, config = recipe(name).row, recipe(name).config
    assert row.cost is not None
    if name in LSTM:
        segments = math.ceil((929_589 // config["batch_size"] - 1) / config["data"]["tgt_len"])
        samples = config["epochs"] * segments * config["batch_size"]
    else:
        samples = min(config["steps"], config["stop_after"] or config["steps"]) * config["batch_size"]
    if config.get("max_epochs"):
        samples = min(samples, config["max_epochs"] * config["data"]["train_examples"])
    assert row.cost.samples == samples
    assert row.cost.passes == (4 if config.get("gradient_checkpointing") else 3)
    model = config["model"]
    if name.startswith("bert/"):
        expected = bert_flops(512, masked=config["data"]["mask_prob"])
    elif name in LSTM:
        widths = [model["emsize"], *[model["nhid"]] * (model["nlayers"] - 1), model["emsize"]]
        matrices = sum(4 * (width + after) * after for width, after in pairwise(widths))
        expected = 2 * config["data"]["tgt_len"] * (matrices + model["emsize"] * 10_000)
    elif name.startswith("glue/"):
        expected = bert_flops(config["data"]["mean_length"], masked=0)
    elif name.startswith("gpt2/"):
        expected = GPT2_FLOPS
    elif name.startswith("adam_mini/gpt2"):
        width, tokens = model["n_embd"], config["data"]["sequence_length"]
        expected = flops(model["n_layer"], width, 12 * width**2, tokens, width * model["vocab_size"])
    elif name.startswith("adam_mini/llama"):
        width, tokens = model["hidden_size"], config["data"]["sequence_length"]
        keys = width * model["num_key_value_heads"] / model["num_attention_heads"]
        matrices = 2 * width**2 + 2 * width * keys + 3 * width * model["intermediate_size"]
        expected = flops(model["num_hidden_layers"], width, matrices, tokens, width * model["vocab_size"])
    elif name.startswith("moe/"):
        width, tokens = model["hidden_size"], config["data"]["sequence_length"]
        experts = model["num_experts_per_tok"] * 3 * width * model["intermediate_size"]
        matrices = 4 * width**2 + model["num_local_experts"] * width + experts
        layers, head = model["num_hidden_layers"], width * model["vocab_size"]
        expected = flops(layers, width, matrices, tokens, head)
    else:
        width, new = model["d_model"], config["tgt_len"]
        seen = new + model["mem_len"]
        projections = 2 * width**2 * (2 * seen + 2 * new)  # keys and values, queries and output
        attention = 3 * 2 * new * seen * width  # content, position, values
        layer = projections + attention + 4 * new * width * model["d_inner"]
        expected = model["n_layer"] * layer + 2 * new * width * (model["cutoffs"][0] + len(model["cutoffs"]))
    assert row.cost.forward_flops == pytest.approx(expected, rel=5e-3)


def test_siblings_are_the_same_run_until_their_schedules_part(released: Path) -> None:
    [mine], [theirs] = (recipe(f"wikitext103/adan_{other}").row.siblings for other in ("100k", "200k"))
    assert (mine.row, theirs.row) == ("wikitext103/adan_200k", "wikitext103/adan_100k")
    assert mine.until == theirs.until
    logs = []
    for name in (mine.row, theirs.row):
        text = (released / recipe(name).row.logs[0].path).read_text()
        logs.append(dict(re.findall(r"step +(\d+) \|.*\| lr (\S+) ", text)))
    parted = [int(step) for step, lr in logs[1].items() if logs[0][step] != lr]
    assert parted[0] == mine.until + 200  # the next line of the log
