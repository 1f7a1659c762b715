"""Translate weights for transformers: fairseq's RoBERTa, Megatron's GPT-2, MAE, and its own models.

A translation is a list of patterns for names; beyond that, some tensors are split, transposed, reordered, or
left out because transformers ties them to others.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch

from repro.errors import UserError
from repro.interop.architectures import ROBERTA, Architecture
from repro.interop.checkpoint import Checkpoint, Weights
from repro.interop.target import Made, Target, Translation
from repro.interop.timm_names import ASSUMED_HEAD, vit_heads

Patterns = Sequence[tuple[str, str]]
QKV = ("query", "key", "value")


def renamed(weights: Weights, patterns: Patterns, found: Checkpoint) -> Weights:
    """Return the weights renamed by the first pattern that matches the whole name.

    Raises:
        UserError: no pattern matches a name.
    """
    new: Weights = {}
    for name, x in weights.items():
        for pattern, replacement in patterns:
            if match := re.fullmatch(pattern, name):
                new[match.expand(replacement)] = x
                break
        else:
            raise UserError(
                f"{found.path}: {name} has no place in the model of transformers; --for same keeps it"
            )
    return new


def split(weights: Weights, pattern: str, names: Sequence[str]) -> Weights:
    """Split every tensor whose name matches, [3 * n, ...], into three; `names` replace the match."""
    new: Weights = {}
    for name, x in weights.items():
        if re.search(pattern, name):
            new |= {re.sub(pattern, part, name): y for part, y in zip(names, x.chunk(3), strict=True)}
        else:
            new[name] = x
    return new


def _heads(found: Checkpoint, width: int, said: int | None, notes: list[str], *keys: str) -> int:
    """Return the number of attention heads: the user's, the file's, or else heads of the usual size."""
    stated = said or next((found.settings[key] for key in keys if found.settings.get(key)), None)
    if stated is None:
        stated = vit_heads(width)
        notes.append(f"{stated} heads of {ASSUMED_HEAD} are assumed: the file does not say; --heads does")
    if not isinstance(stated, int) or stated < 1 or width % stated:
        raise UserError(f"{found.path}: {stated} heads do not divide a width of {width}")
    return stated


# ---- fairseq's RoBERTa

_LAYER = r"roberta.encoder.layer.\1"
FAIRSEQ: Patterns = [
    (r"encoder\.embed_tokens\.(\w+)", r"roberta.embeddings.word_embeddings.\1"),
    (r"encoder\.embed_positions\.(\w+)", r"roberta.embeddings.position_embeddings.\1"),
    (r"encoder\.(?:layernorm_embedding|emb_layer_norm)\.(\w+)", r"roberta.embeddings.LayerNorm.\1"),
    *(
        (rf"encoder\.layers\.(\d+)\.self_attn\.{name[0]}_proj\.(\w+)", rf"{_LAYER}.attention.self.{name}.\2")
        for name in QKV
    ),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)", rf"{_LAYER}.attention.output.dense.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(\w+)", rf"{_LAYER}.attention.output.LayerNorm.\2"),
    (r"encoder\.layers\.(\d+)\.fc1\.(\w+)", rf"{_LAYER}.intermediate.dense.\2"),
    (r"encoder\.layers\.(\d+)\.fc2\.(\w+)", rf"{_LAYER}.output.dense.\2"),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.(\w+)", rf"{_LAYER}.output.LayerNorm.\2"),
    (r"encoder\.(lm_head\.(?:dense|layer_norm)\.\w+|lm_head\.bias)", r"\1"),
    (r"classification_heads\.\w+\.(dense|out_proj)\.(\w+)", r"classifier.\1.\2"),
]


def _roberta(found: Checkpoint, weights: Weights, known: Architecture, heads: int | None) -> Made:
    """Translate fairseq's RoBERTa: drop the tied output, add the zero segment that transformers wants."""
    sizes = known.sizes
    notes: list[str] = []
    weights = {name.replace(f"{ROBERTA}.", "encoder."): x for name, x in weights.items()}
    tied = weights.pop("encoder.lm_head.weight", None)
    config: dict[str, Any] = {"tie_word_embeddings": True}
    names = {name.split(".")[1] for name in weights if name.startswith("classification_heads.")}
    if len(names) > 1:
        raise UserError(f"{found.path} has several classification heads ({', '.join(sorted(names))})")
    if names:
        model = "RobertaForSequenceClassification"
        config["num_labels"] = weights[f"classification_heads.{next(iter(names))}.out_proj.weight"].shape[0]
        weights = {name: x for name, x in weights.items() if not name.startswith("encoder.lm_head.")}
        notes.append("left out: the language model's head, which a classifier does not have")
    else:
        model = "RobertaForMaskedLM"
        if tied is not None and not torch.equal(tied, weights["encoder.embed_tokens.weight"]):
            raise UserError(
                f"{found.path}: the output's weights are not those of the embedding, as in RoBERTa's"
            )
    weights = {k: x for k, x in weights.items() if k.rpartition(".")[2] not in ("version", "_float_tensor")}
    weights = split(weights, r"in_proj_", ("q_proj.", "k_proj.", "v_proj."))
    weights = renamed(weights, FAIRSEQ, found)
    embedding = weights["roberta.embeddings.word_embeddings.weight"]
    weights["roberta.embeddings.token_type_embeddings.weight"] = embedding.new_zeros(1, sizes["width"])
    keys = ("model.encoder_attention_heads", "encoder_attention_heads")
    config |= {
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": _heads(found, sizes["width"], heads, notes, *keys),
        "intermediate_size": sizes["MLP"],
        "vocab_size": sizes["vocabulary"],
        "max_position_embeddings": sizes["positions"],
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    }
    return Target("transformers", model, config), weights, notes


# ---- Megatron's GPT-2

_STACK = r"language_model\.(?:transformer|encoder)"
MEGATRON: Patterns = [
    (r"language_model\.embedding\.word_embeddings\.weight", "transformer.wte.weight"),
    (r"language_model\.embedding\.position_embeddings\.weight", "transformer.wpe.weight"),
    (rf"{_STACK}\.layers\.(\d+)\.input_layernorm\.(\w+)", r"transformer.h.\1.ln_1.\2"),
    (
        rf"{_STACK}\.layers\.(\d+)\.(?:self_)?attention\.query_key_value\.(\w+)",
        r"transformer.h.\1.attn.c_attn.\2",
    ),
    (rf"{_STACK}\.layers\.(\d+)\.(?:self_)?attention\.dense\.(\w+)", r"transformer.h.\1.attn.c_proj.\2"),
    (rf"{_STACK}\.layers\.(\d+)\.post_attention_layernorm\.(\w+)", r"transformer.h.\1.ln_2.\2"),
    (rf"{_STACK}\.layers\.(\d+)\.mlp\.dense_h_to_4h\.(\w+)", r"transformer.h.\1.mlp.c_fc.\2"),
    (rf"{_STACK}\.layers\.(\d+)\.mlp\.dense_4h_to_h\.(\w+)", r"transformer.h.\1.mlp.c_proj.\2"),
    (rf"{_STACK}\.final_layernorm\.(\w+)", r"transformer.ln_f.\1"),
]


def _megatron(found: Checkpoint, weights: Weights, known: Architecture, heads: int | None) -> Made:
    """Translate Megatron's GPT-2: transpose linear layers, keep padded rows of the vocabulary."""
    sizes = known.sizes
    notes: list[str] = []
    settings = found.settings
    ranks = settings.get("tensor_model_parallel_size") or 1
    if ranks > 1 and sizes["vocabulary"] * ranks == settings.get("padded_vocab_size"):
        raise UserError(f"{found.path} is one of {ranks} parts: name the folder that has all of them")
    count = _heads(found, sizes["width"], heads, notes, "num_attention_heads")
    version = float(settings.get("checkpoint_version", 0))
    weights = {k: x for k, x in weights.items() if not k.startswith("word_embeddings_for_head")}
    weights = renamed({k: x for k, x in weights.items() if not k.endswith("._extra_state")}, MEGATRON, found)
    for name, x in weights.items():
        if ".c_attn." in name:
            weights[name] = x = ordered(x, count, version)
        if re.search(r"\.(c_attn|c_proj|c_fc)\.weight", name):
            weights[name] = x.t().contiguous()
    tanh = settings.get("bias_gelu_fusion", True) or settings.get("openai_gelu", False)
    if settings.get("onnx_safe"):
        tanh = False
    config = {
        "n_embd": sizes["width"],
        "n_layer": sizes["layers"],
        "n_head": count,
        "n_inner": sizes["MLP"],
        "vocab_size": sizes["vocabulary"],
        "n_positions": sizes["positions"],
        "activation_function": "gelu_new" if tanh else "gelu",
        "layer_norm_epsilon": settings.get("layernorm_epsilon", 1e-5),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    padded = settings.get("padded_vocab_size")
    if padded:
        notes.append(f"{padded} rows of the embedding: Megatron pads the vocabulary")
    return Target("transformers", "GPT2LMHeadModel", config), weights, notes


def ordered(x: torch.Tensor, heads: int, version: float) -> torch.Tensor:
    """Return the rows of query, key and value ([3 * width, ...]) as queries, keys, values, each by head.

    checkpoint_version 0 has this order, 1 has (head, element, of the three), 2 and later (head, of the three,
    element); see fix_query_key_value_ordering in Megatron-LM's checkpointing.py.
    """
    rest = x.shape[1:]
    if version >= 2:
        return x.reshape(heads, 3, -1, *rest).transpose(0, 1).reshape(-1, *rest)
    if version >= 1:
        return x.reshape(heads, -1, 3, *rest).movedim(2, 0).reshape(-1, *rest)
    return x


# ---- MAE

_BLOCK = [
    ("norm1", "layernorm_before"),
    ("attn.query", "attention.attention.query"),
    ("attn.key", "attention.attention.key"),
    ("attn.value", "attention.attention.value"),
    ("attn.proj", "attention.output.dense"),
    ("norm2", "layernorm_after"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
]
MAE: Patterns = [
    (r"cls_token", "vit.embeddings.cls_token"),
    (r"pos_embed", "vit.embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(\w+)", r"vit.embeddings.patch_embeddings.projection.\1"),
    (r"norm\.(\w+)", r"vit.layernorm.\1"),
    (r"(mask_token|decoder_pos_embed)", r"decoder.\1"),
    (r"(decoder_(?:embed|norm|pred)\.\w+)", r"decoder.\1"),
    *(
        (rf"{blocks}\.(\d+)\.{re.escape(old)}\.(\w+)", rf"{layers}.\1.{new}.\2")
        for blocks, layers in (("blocks", "vit.encoder.layer"), ("decoder_blocks", "decoder.decoder_layers"))
        for old, new in _BLOCK
    ),
]
DECODER_HEADS = 16  # in all three models of MAE


def _mae(found: Checkpoint, weights: Weights, known: Architecture, heads: int | None) -> Made:
    """Translate MAE: split q, k and v."""
    sizes = known.sizes
    notes: list[str] = []
    weights = split(weights, r"qkv", QKV)
    config = {
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": _heads(found, sizes["width"], heads, notes),
        "intermediate_size": sizes["MLP"],
        "image_size": sizes["image"],
        "patch_size": sizes["patch"],
        "num_channels": sizes["channels"],
        "decoder_hidden_size": sizes["decoder width"],
        "decoder_num_hidden_layers": sizes["decoder depth"],
        "decoder_num_attention_heads": DECODER_HEADS,
        "decoder_intermediate_size": weights["decoder_blocks.0.mlp.fc1.weight"].shape[0],
        "norm_pix_loss": bool(found.settings.get("norm_pix_loss", False)),
        "layer_norm_eps": 1e-6,
    }
    return Target("transformers", "ViTMAEForPreTraining", config), renamed(weights, MAE, found), notes


def own(found: Checkpoint, weights: Weights) -> Made:
    """Return a model of transformers itself by its config.json, without keys that load code or kernels."""
    config = {
        key: value
        for key, value in found.config.items()
        if not key.startswith("_") and key not in ("attn_implementation", "auto_map", "quantization_config")
    }
    return Target("transformers", found.model or "", config), weights, []


FAMILIES: dict[str | None, Translation] = {
    "fairseq RoBERTa": _roberta,
    "Megatron GPT-2": _megatron,
    "MAE": _mae,
}
