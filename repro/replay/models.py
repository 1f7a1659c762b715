"""The number of a model's parameters: what the log says, and what the model of our configuration has."""

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
            return _autoencoder(name, config["decoder"])
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


def _autoencoder(name: str, decoder: dict[str, int]) -> nn.Module:
    """Return the masked autoencoder with an encoder of timm's; its decoder's MLPs are 4 wide, too."""
    encoder: Any = timm.create_model(name)
    described = transformers.ViTMAEConfig(
        hidden_size=encoder.embed_dim,
        num_hidden_layers=len(encoder.blocks),
        num_attention_heads=encoder.blocks[0].attn.num_heads,
        intermediate_size=4 * encoder.embed_dim,
        decoder_hidden_size=decoder["embed_dim"],
        decoder_num_hidden_layers=decoder["depth"],
        decoder_num_attention_heads=decoder["num_heads"],
        decoder_intermediate_size=4 * decoder["embed_dim"],
    )
    return transformers.ViTMAEForPreTraining(described)


def _logged(format: str, config: dict[str, Any]) -> int | None:
    # fairseq's count has a second copy of the layers in it, which is not trained
    key = {"mae": "parameters", "transformer_xl": "n_all_param"}.get(format)
    return None if key is None else config.get(key)
