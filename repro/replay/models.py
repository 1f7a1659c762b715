"""The number of a model's parameters: what the log says, and what the model of our configuration has."""

import importlib
from typing import Any

import timm
import torch
import transformers
from torch import nn

from repro.ledger import Recipe
from repro.replay.checks import Check, Evidence

IMAGENET_CLASSES = 1000


def parameters(evidence: Evidence, recipe: Recipe) -> Check:
    """Check that the row has the log's and the model's number of trained parameters, where these have one."""
    stated = recipe.row.parameters
    found: dict[str, int] = {}
    logged = None if evidence.log is None else _logged(evidence.log.format, evidence.log.config)
    if logged is not None:
        found["log"] = logged
    model = build(recipe.config.get("model") or {})
    if model is not None:
        found["model"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not found:
        return Check(None, "not stated" if stated is None else f"{stated:,}, by the row alone")
    wrong = {source: count for source, count in found.items() if count != stated}
    notes = tuple(
        f"parameters: the {source} has {count:,}, the row {stated}" for source, count in wrong.items()
    )
    return Check(not notes, f"{stated:,} ({', '.join(found)})" if stated else "not stated", len(found), notes)


def build(config: dict[str, Any]) -> nn.Module | None:
    """Return the model of a configuration's node `model`, without memory; None where no library has it."""
    name = config.get("name", "")
    options = {key: value for key, value in config.items() if key not in ("name", "checkpoint")}
    with torch.device("meta"):
        if "decoder" in config:
            return _autoencoder(name, config)
        if timm.is_model(name):
            rest = {"drop_path_rate": config.get("drop_path", 0.0), **config.get("kwargs", {})}
            model: nn.Module = timm.create_model(name, num_classes=IMAGENET_CLASSES, **rest)
            return model
        if name == "roberta":
            described = transformers.RobertaConfig(**options)
            if "num_labels" in options:
                return transformers.RobertaForSequenceClassification(described)
            return transformers.RobertaForMaskedLM(described)
        if name == "gpt2":
            return transformers.GPT2LMHeadModel(transformers.GPT2Config(**options))
        if name == "mixtral":
            return transformers.MixtralForCausalLM(transformers.MixtralConfig(**options))
    return None


def _autoencoder(name: str, config: dict[str, Any]) -> nn.Module:
    """Return our masked autoencoder; its recipe is imported here alone, as repro builds on no recipe."""
    encoder = timm.create_model(name, **config["kwargs"])
    model: nn.Module = importlib.import_module("vision.mae").MaskedAutoencoder(encoder, **config["decoder"])
    return model


def _logged(format: str, config: dict[str, Any]) -> int | None:
    # fairseq's count has a second copy of the layers in it, which is not trained
    key = {"mae": "parameters", "transformer_xl": "n_all_param"}.get(format)
    return None if key is None else config.get(key)
