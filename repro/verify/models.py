"""The number of a model's parameters: what the log says, and what the model of our configuration has."""

import importlib
from dataclasses import fields
from types import SimpleNamespace
from typing import Any, cast

import timm
import torch
from torch import nn

from repro.ledger.rows import Recipe
from repro.verify.checks import Check, Evidence

IMAGENET_CLASSES = 1000


def parameters(evidence: Evidence, recipe: Recipe) -> Check:
    """Check that the row has the log's and the model's number of trained parameters, where these have one."""
    stated = recipe.row.parameters
    found: dict[str, int] = {}
    logged = None if evidence.log is None else _logged(evidence.log.format, evidence.log.config)
    if logged is not None:
        found["log"] = logged
    model = build(recipe.config, recipe.row.config)
    if model is not None:
        found["model"] = count(model)
    if not found:
        return Check(None, "not stated" if stated is None else f"{stated:,}, by the row alone")
    wrong = {source: number for source, number in found.items() if number != stated}
    notes = [f"parameters: the {source} has {number:,}, the row {stated}" for source, number in wrong.items()]
    layers = None if evidence.log is None else evidence.log.config.get("n_nonemb_param")
    if layers is not None and model is not None and (ours := count(model.get_submodule("layers"))) != layers:
        notes.append(f"parameters: the log has {layers:,} in the layers, the model {ours:,}")
    says = f"{stated:,} ({', '.join(found)})" if stated else "not stated"
    return Check(not notes, says, len(found) + (layers is not None), tuple(notes))


def count(model: nn.Module) -> int:
    """Return the number of trained parameters, those in two places once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def build(config: dict[str, Any], primary: str | None = None) -> nn.Module | None:
    """Return the model of a configuration, without memory; None where there is none to build it from.

    Args:
        primary: the recipe's primary config, where a row says it: reward models are language models but for
            their head.
    """
    model: dict[str, Any] = config.get("model") or {}
    with torch.device("meta"):
        if primary == "reward":
            return cast(nn.Module, _own("llm.pretrained", "new_scorer")({**model, "checkpoint": None}))
        return cast(nn.Module | None, _build(model, (config.get("tokenizer") or {}).get("vocab_size")))


def _build(model: dict[str, Any], words: int | None) -> Any:
    name = model.get("name", "")
    if "decoder" in model:
        encoder = timm.create_model(name, **model["kwargs"])
        return _own("vision.mae", "MaskedAutoencoder")(encoder, **model["decoder"])
    if timm.is_model(name):
        rest = {"drop_path_rate": model.get("drop_path", 0.0), **model.get("kwargs", {})}
        return timm.create_model(name, num_classes=IMAGENET_CLASSES, **rest)
    if name in ("roberta", "bert"):
        return _encoder(model, words)
    if name == "transformer_xl":
        config = _own("nlp.config.transformer_xl", "ModelConfig")(**model)
        return _own("nlp.transformer_xl", "TransformerXL")(config, words)
    if "nlayers" in model:
        return _own("nlp.lstm", "LSTMLanguageModel")(_own("nlp.config.lstm", "LSTMConfig")(**model), words)
    if name in ("gpt2", "llama", "mixtral"):
        return _own("llm.models", "build")({**model, "checkpoint": None}, words)
    return None


def _encoder(model: dict[str, Any], words: int | None) -> Any:
    """Return BERT or RoBERTa, with the head for sentences where the configuration has one."""
    schema = _own("nlp.config.bert", "EncoderConfig")
    config = schema(**{field.name: model[field.name] for field in fields(schema)})
    size = config.vocab_size or words
    tokens = SimpleNamespace(vocab_size=size, bos=0, pad=1, eos=2)  # fairseq's, of no bearing here
    if "num_labels" in model:
        return _own("nlp.bert", "build_classifier")(config, model["num_labels"], tokens)
    return _own("nlp.bert", "build_masked_lm")(config, tokens)


def _own(module: str, name: str) -> Any:
    # models of the recipes are imported here alone, as repro builds on none of them
    return getattr(importlib.import_module(module), name)


def _logged(format: str, config: dict[str, Any]) -> int | None:
    # fairseq's count has a second copy of the layers in it, which is not trained
    key = {"mae": "parameters", "transformer_xl": "n_all_param"}.get(format)
    return None if key is None else config.get(key)
