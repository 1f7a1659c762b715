"""The number of a model's parameters: what the log says, and what the model of our configuration has."""

from typing import Any

import timm
import torch
import transformers
from torch import nn

from repro.ledger import Recipe
from repro.replay.checks import Check, Evidence

IMAGENET_CLASSES = 1000
CONFIGURED = {  # by model.name: what transformers calls it, with a head for pre-training and one for classes
    "roberta": (
        transformers.RobertaConfig,
        transformers.RobertaForMaskedLM,
        transformers.RobertaForSequenceClassification,
    ),
    "gpt2": (
        transformers.GPT2Config,
        transformers.GPT2LMHeadModel,
        transformers.GPT2ForSequenceClassification,
    ),
}


def parameters(evidence: Evidence, recipe: Recipe) -> Check:
    """Check that the row, the log and the model have one number of parameters, as far as each has one."""
    stated = recipe.row.parameters
    found: dict[str, int] = {}
    if evidence.log is not None and (logged := _logged(evidence.log.format, evidence.log.config)):
        found["log"] = logged
    model = build(recipe.config.get("model") or {})
    if model is not None:
        found["model"] = sum(p.numel() for p in model.parameters())
    if stated is None:
        return Check(None, "not stated")
    if not found:
        return Check(None, f"{stated:,}, by the row alone")
    notes = tuple(
        f"parameters: the {of} has {count:,}, the row {stated:,}"
        for of, count in found.items()
        if count != stated
    )
    return Check(not notes, f"{stated:,} ({', '.join(found)})", len(found), notes)


def build(config: dict[str, Any]) -> nn.Module | None:
    """Return the model of a configuration's node `model`, without memory; None if no library has it."""
    name = config.get("name", "")
    with torch.device("meta"):
        if "decoder" not in config and timm.is_model(name):
            kwargs = config.get("kwargs", {})
            return timm.create_model(
                name, num_classes=IMAGENET_CLASSES, drop_path_rate=config.get("drop_path", 0.0), **kwargs
            )
        if name in CONFIGURED:
            describe, pretraining, classification = CONFIGURED[name]
            options = {key: value for key, value in config.items() if key not in ("name", "checkpoint")}
            return (classification if "num_labels" in config else pretraining)(describe(**options))
    return None


def _logged(format: str, config: dict[str, Any]) -> int | None:
    # fairseq's count has a second copy of the layers in it, which is not trained
    key = {"mae": "parameters", "transformer_xl": "n_all_param"}.get(format)
    return None if key is None else config.get(key)
