"""transformers' causal language models, built from a configuration with transformers' keys.

A `model` is a dictionary: `name` is a model type (gpt2, llama, mixtral, or any other causal language model in
transformers), and the rest are keys of its configuration class. Two have a special meaning:

    vocab_size              null: the tokenizer's
    checkpoint              weights to start from instead of random ones; see `load`

and two are for mixtures of experts:

    experts_implementation  transformers' eager, batched_mm or grouped_mm; null: the last, in the precision of
                            autocast
    router_z_loss_coef      weight of the z-loss in llm/routing.py, which transformers lacks
"""

import dataclasses
import difflib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.func import functional_call
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

from repro.errors import UserError
from repro.interop import read_weights
from repro.loading import read_yaml

OF_MIXTURES = ("experts_implementation", "router_z_loss_coef")
EXPERTS = ("eager", "batched_mm", "grouped_mm")
EXPORT = "transformers"  # folder in a finished run with its model in the format of transformers


def build(
    model: dict[str, Any], vocab_size: int | None = None, gradient_checkpointing: bool = False
) -> PreTrainedModel:
    """Return a model with its initial weights in float32, or without weights under torch.device("meta").

    Args:
        model: see the module's docstring.
        vocab_size: the tokenizer's, for a model that sets none; a larger one of the model pads the embedding.
        gradient_checkpointing: keep only the inputs of each layer, and recompute the rest for gradients.

    Raises:
        UserError: a key is unknown or its value cannot work, or the tokenizer has more tokens than the model.
    """
    config = settings(model, vocab_size)
    if model.get("checkpoint") is None:
        made = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    else:
        made = load(model["checkpoint"], config)
    return prepared(made, model.get("experts_implementation"), gradient_checkpointing)


def settings(model: dict[str, Any], vocab_size: int | None = None) -> PreTrainedConfig:
    """Return the configuration of transformers for a model; see `build`."""
    name = model.get("name")
    if name not in CAUSAL:
        near = difflib.get_close_matches(str(name), CAUSAL)
        hint = f"; did you mean {near[0]}?" if near else ", such as gpt2, llama and mixtral"
        raise UserError(f"model.name={name}: is no causal language model of transformers{hint}")
    kind = CONFIG_MAPPING[str(name)]
    known = {"name", "checkpoint", *(field.name for field in dataclasses.fields(kind)), *kind.attribute_map}
    if is_mixture(kind):
        known |= set(OF_MIXTURES)
    for key in model.keys() - known:
        near = difflib.get_close_matches(key, known)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"model.{key}: {name} has no such key{hint}")
    if model.get("experts_implementation") not in (None, *EXPERTS):
        raise UserError(
            f"model.experts_implementation={model['experts_implementation']}: "
            f"must be null or one of {', '.join(EXPERTS)}"
        )
    # Special tokens are those that `model` names, the tokenizer's, not the defaults of the class.
    keys: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
    ours = ("name", "checkpoint", "experts_implementation")
    keys |= {key: value for key, value in model.items() if key not in ours}
    if is_mixture(kind):
        keys.setdefault("router_z_loss_coef", 0.0)
    if keys.get("vocab_size") is None:
        keys["vocab_size"] = vocab_size
    if keys["vocab_size"] is None:
        del keys["vocab_size"]
    try:
        config = kind(**keys)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(f"model={name}: {' '.join(str(error).split())}") from error
    if vocab_size is not None and config.vocab_size < vocab_size:
        raise UserError(
            f"model.vocab_size={config.vocab_size}: the tokenizer has {vocab_size} tokens; null takes as many"
        )
    heads = config.num_attention_heads
    if heads < 1 or (getattr(config, "head_dim", None) is None and config.hidden_size % heads):
        raise UserError(f"model: {heads} attention heads do not divide a width of {config.hidden_size}")
    return config


def is_mixture(config: PreTrainedConfig | type[PreTrainedConfig]) -> bool:
    """Tell whether a configuration is that of a mixture of experts, with routers to balance."""
    return hasattr(config, "router_aux_loss_coef")


def load(checkpoint: str | Path, config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """Return a model with trained weights, in float32 and in evaluation mode.

    Args:
        checkpoint: a run folder of llm/pretrain.py, finished or not (its best weights); a folder that
            transformers wrote; or a model's name on the Hugging Face hub.
        config: of the model; None: the checkpoint's.

    Raises:
        UserError: it cannot be read, or its weights do not fit the model.
    """
    folder = Path(checkpoint).expanduser()
    if (folder / "checkpoints").is_dir() and not (folder / EXPORT).is_dir():
        return _from_run(folder, config)
    place = place_of(str(checkpoint))
    try:
        made, report = AutoModelForCausalLM.from_pretrained(
            place, config=config, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot load a language model from {checkpoint}: {reason}") from error
    for what in ("missing", "unexpected", "mismatched"):
        if report[f"{what}_keys"]:
            raise UserError(f"{checkpoint}: has {what} weights, such as {sorted(report[f'{what}_keys'])[0]}")
    return prepared(made)


def place_of(checkpoint: str) -> str:
    """Return the folder or name to load a model from; for a finished run, the folder of its best weights.

    Raises:
        UserError: it is no folder, and cannot be a name on the hub.
    """
    path = Path(checkpoint).expanduser()
    if not path.exists():
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", checkpoint):
            raise UserError(f"{checkpoint}: no such folder; name a run, or a model of transformers")
        return checkpoint
    exported = path / EXPORT
    return str(exported if exported.is_dir() else path)


def read_tokenizer(checkpoint: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a run folder, a folder of transformers or a name on the hub.

    Raises:
        UserError: there is none that transformers can read.
    """
    place = place_of(checkpoint)
    for folder in (Path(place), Path(place) / "tokenizer"):
        if (folder / "tokenizer_config.json").exists():
            place = str(folder)
    try:
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        lacks = f"has no tokenizer that transformers can read ({reason[:150]})"
        raise UserError(f"{checkpoint}: {lacks}") from error


def _from_run(folder: Path, config: PreTrainedConfig | None) -> PreTrainedModel:
    """Load an unfinished run from its best checkpoint."""
    weights, found = read_weights(folder)
    if config is None:
        model = read_yaml(folder / "config.yaml").get("model")
        if not isinstance(model, dict):
            raise UserError(f"{folder / 'config.yaml'}: has no model in it; name a run of llm/pretrain.py")
        tables = ("wte.weight", "embed_tokens.weight")
        sizes = [len(x) for name, x in weights.items() if name.endswith(tables)]
        config = settings({**model, "checkpoint": None}, *sizes[:1])
    made = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    try:
        made.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{found.path}: {' '.join(str(error).split())[:500]}") from error
    return prepared(made.eval())


def prepared(
    model: PreTrainedModel, experts: str | None = None, gradient_checkpointing: bool = False
) -> PreTrainedModel:
    """Return the model with settings that affect how it computes, not what."""
    if model._can_set_experts_implementation():
        model.set_experts_implementation(experts or "grouped_mm_in_autocast")
    elif experts is not None:
        raise UserError(f"model.experts_implementation={experts}: {model.config.model_type} has no experts")
    if gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def grouped_mm_in_autocast(experts: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Return the experts' output [tokens, width], by one grouped matrix product in autocast's precision.

    torch's autocast does not cover that product and would leave it in the weights' float32, for which GPUs
    have no kernel.

    Args:
        experts: transformers' module with the weights of all experts.
        hidden: [tokens, width].
        index: the experts of each token [tokens, experts per token].
        weights: of their outputs [tokens, experts per token].
    """
    kind = hidden.device.type
    if not torch.is_autocast_enabled(kind):
        return grouped_mm_experts_forward(experts, hidden, index, weights)
    dtype = torch.get_autocast_dtype(kind)
    cast = {name: parameter.to(dtype) for name, parameter in experts.named_parameters()}
    with torch.autocast(kind, enabled=False):
        return functional_call(experts, cast, (hidden.to(dtype), index, weights))


ALL_EXPERTS_FUNCTIONS.register("grouped_mm_in_autocast", grouped_mm_in_autocast)


def flops(config: PreTrainedConfig, tokens: int, length: int) -> float:
    """Return the operations of a forward pass over `tokens` tokens in sequences of `length`.

    They are two for each weight in a matrix product with a token (only active experts count), and those of
    attention from each token to all `length` of its sequence, as torch's FlopCounterMode counts them.
    """
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 2 * length * config.num_hidden_layers * config.num_attention_heads * width
    return 2.0 * tokens * (_weights_per_token(config.to_json_string()) + attention)


@lru_cache(8)
def _weights_per_token(config: str) -> float:
    """Return the number of weights that a token is multiplied by."""
    keys = json.loads(config)
    config_class = CONFIG_MAPPING[keys["model_type"]]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_class.from_dict(keys))
    share = model.config.num_experts_per_tok / model.config.num_experts if is_mixture(model.config) else 1.0
    multiplied = (module for module in model.modules() if not isinstance(module, nn.Embedding))
    weights = (weight for module in multiplied for weight in module.parameters(recurse=False))
    # weights with three dimensions are those of all experts of a layer
    return sum(weight.numel() * {2: 1.0, 3: share}.get(weight.ndim, 0.0) for weight in weights)
