"""What a model is, as far as the names and shapes of its tensors tell."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
Sizes = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """A family of models, and the sizes of this one: elements, layers, or pixels."""

    family: str
    sizes: Sizes

    def __str__(self) -> str:
        """Return the family and the sizes in a line."""
        return f"{self.family} ({', '.join(f'{k} {v}' for k, v in self.sizes.items() if v is not None)})"


def infer(shapes: Shapes) -> Architecture | None:
    """Return the architecture of a model with tensors of these names and shapes, None for an unknown one."""
    for family, required, measure in FAMILIES:
        only = ONLY.get(family)
        alike = only is None or all(only.fullmatch(name) for name in shapes)
        if alike and all(name in shapes for name in required):
            try:
                return Architecture(family, measure(shapes))
            except (KeyError, ValueError, IndexError):  # known names, but tensors of other shapes
                continue
    return None


def depth(shapes: Iterable[str], prefix: str) -> int:
    """The number of layers whose tensors are `<prefix><number>.<...>`."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({found[1] for name in shapes if (found := pattern.match(name))})


def _first(shapes: Shapes, *names: str, axis: int = 0) -> int | None:
    return next((shapes[name][axis] for name in names if name in shapes), None)


def _vit(shapes: Shapes) -> Sizes:
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    _, tokens, _ = shapes["pos_embed"]
    prefix = sum(shapes[name][1] for name in ("cls_token", "dist_token", "reg_token") if name in shapes)
    patches = tokens if isqrt(tokens) ** 2 == tokens else tokens - prefix
    return {
        "width": width,
        "depth": depth(shapes, "blocks."),
        "MLP": shapes["blocks.0.mlp.fc1.weight"][0],
        "patch": patch,
        "image": isqrt(patches) * patch if isqrt(patches) ** 2 == patches else None,
        "channels": channels,
        "classes": _first(shapes, "head.weight") or 0,
    }


def _mae(shapes: Shapes) -> Sizes:
    decoder = {"decoder width": shapes["decoder_embed.weight"][0]}
    return _vit(shapes) | decoder | {"decoder depth": depth(shapes, "decoder_blocks.")}


def _resnet(shapes: Shapes) -> Sizes:
    if shapes["layer1.0.conv1.weight"][0] != 64 or shapes["layer1.0.conv2.weight"][1] != 64:
        raise ValueError("wide, or with groups: not a ResNet")
    block = "bottleneck" if "layer1.0.conv3.weight" in shapes else "basic"
    depths = [depth(shapes, f"layer{i}.") for i in range(1, 5)]
    layers = (3 if block == "bottleneck" else 2) * sum(depths) + 2
    return {"layers": layers, "block": block, "depths": depths, "classes": _first(shapes, "fc.weight") or 0}


def _convnext(shapes: Shapes) -> Sizes:
    stages = range(depth(shapes, "stages."))
    return {
        "depths": [depth(shapes, f"stages.{i}.blocks.") for i in stages],
        "widths": [shapes[f"stages.{i}.blocks.0.conv_dw.weight"][0] for i in stages],
        "classes": _first(shapes, "head.fc.weight", "head.weight") or 0,
    }


def _swin(shapes: Shapes) -> Sizes:
    width, _, patch, _ = shapes["patch_embed.proj.weight"]
    table = shapes["layers.0.blocks.0.attn.relative_position_bias_table"]
    return {
        "width": width,
        "depths": [depth(shapes, f"layers.{i}.blocks.") for i in range(depth(shapes, "layers."))],
        "patch": patch,
        "window": (isqrt(table[0]) + 1) // 2,
        "classes": _first(shapes, "head.fc.weight", "head.weight") or 0,
    }


def _fairseq_roberta(shapes: Shapes) -> Sizes:
    base = f"{ROBERTA}."
    vocabulary, width = shapes[f"{base}embed_tokens.weight"]
    return {
        "width": width,
        "layers": depth(shapes, f"{base}layers."),
        "MLP": shapes[f"{base}layers.0.fc1.weight"][0],
        "vocabulary": vocabulary,
        "positions": shapes[f"{base}embed_positions.weight"][0],
    }


def _bert(model: str, shapes: Shapes) -> Sizes:
    """BERT's and RoBERTa's sizes under the names of transformers."""
    vocabulary, width = shapes[f"{model}.embeddings.word_embeddings.weight"]
    return {
        "width": width,
        "layers": depth(shapes, f"{model}.encoder.layer."),
        "MLP": shapes[f"{model}.encoder.layer.0.intermediate.dense.weight"][0],
        "vocabulary": vocabulary,
        "positions": shapes[f"{model}.embeddings.position_embeddings.weight"][0],
    }


def _gpt2(prefix: str, shapes: Shapes) -> Sizes:
    vocabulary, width = shapes[f"{prefix}wte.weight"]
    layers, positions = depth(shapes, f"{prefix}h."), shapes[f"{prefix}wpe.weight"][0]
    return {"width": width, "layers": layers, "vocabulary": vocabulary, "positions": positions}


def _megatron(stack: str, shapes: Shapes) -> Sizes:
    vocabulary, width = shapes[f"{EMBEDDING}.word_embeddings.weight"]
    return {
        "width": width,
        "layers": depth(shapes, f"language_model.{stack}.layers."),
        "MLP": shapes[f"language_model.{stack}.layers.0.mlp.dense_h_to_4h.weight"][0],
        "vocabulary": vocabulary,
        "positions": shapes[f"{EMBEDDING}.position_embeddings.weight"][0],
    }


def _transformer_xl(shapes: Shapes) -> Sizes:
    tables = [name for name in shapes if name.startswith("word_emb.emb_layers.")]
    heads, head = shapes["r_w_bias"][-2:]
    return {
        "width": shapes["layers.0.dec_attn.layer_norm.weight"][0],
        "layers": depth(shapes, "layers."),
        "heads": heads,
        "head": head,
        "MLP": shapes["layers.0.pos_ff.CoreNet.0.weight"][0],
        "vocabulary": sum(shapes[name][0] for name in tables),
    }


def _llama(shapes: Shapes) -> Sizes:
    vocabulary, width = shapes["model.embed_tokens.weight"]
    return {
        "width": width,
        "layers": depth(shapes, "model.layers."),
        "MLP": shapes["model.layers.0.mlp.gate_proj.weight"][0],
        "vocabulary": vocabulary,
    }


def _weights(prefix: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{name}.weight" for name in names)


ROBERTA = "encoder.sentence_encoder"
EMBEDDING = "language_model.embedding"
_VIT = ("pos_embed", *_weights("", "patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.mlp.fc1"))
_MAE = ("mask_token", *_weights("", "decoder_embed", "decoder_blocks.0.attn.qkv"))
_SWIN = ("patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table")
_BERT = ("embeddings.word_embeddings", "embeddings.position_embeddings", "encoder.layer.0.intermediate.dense")
_GPT2 = ("wte", "wpe", "h.0.attn.c_attn")
_TXL = ("word_emb.emb_layers.0", "layers.0.dec_attn.layer_norm", "layers.0.pos_ff.CoreNet.0")
_EMBEDDINGS = _weights(EMBEDDING, ".word_embeddings", ".position_embeddings")

# Names that models of these families have, and no others: hiera, EVA, SAM, BEiT, SE-ResNet and ConvNeXt V2
# have all those of FAMILIES, and some more.
_VIT_ONLY = (
    r"(cls|reg|dist)_token|pos_embed|patch_embed\.(proj|norm)\.\w+|(norm|norm_pre|fc_norm|head|head_dist)\.\w+"
    r"|pre_logits\.fc\.\w+|attn_pool\..*"
    r"|blocks\.\d+\.(norm[12]|attn\.(qkv|proj|q_norm|k_norm|norm)|mlp\.(fc1|fc2|norm)|ls[12])\.\w+"
)
ONLY = {
    "ViT": re.compile(_VIT_ONLY),
    "MAE": re.compile(rf"{_VIT_ONLY}|mask_token|decoder_.*"),
    "ResNet": re.compile(r"(conv1|bn1|fc)\.\w+|layer[1-4]\.\d+\.((conv|bn)[123]|downsample\.[01])\.\w+"),
    "ConvNeXt": re.compile(
        r"(stem\.[01]|stages\.\d+\.downsample\.[01]|norm_pre|head|head\.(norm|fc))\.\w+"
        r"|stages\.\d+\.blocks\.\d+\.(gamma|(conv_dw|norm|mlp\.fc[12])\.\w+)"
    ),
    "Swin": re.compile(
        r"(patch_embed\.(proj|norm)|norm|head|head\.fc|layers\.\d+\.downsample\.(norm|reduction))\.\w+"
        r"|layers\.\d+\.blocks\.\d+\.(attn_mask|(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.\w+"
        r"|attn\.relative_position_(bias_table|index))"
    ),
}

# Family, names that its models have, and a function of the shapes. The first that fits counts.
FAMILIES: tuple[tuple[str, tuple[str, ...], Callable[[Shapes], Sizes]], ...] = (
    ("MAE", (*_VIT, *_MAE), _mae),
    ("ViT", _VIT, _vit),
    ("ResNet", _weights("", "conv1", "layer1.0.conv1", "layer4.0.conv1"), _resnet),
    ("ConvNeXt", _weights("", "stem.0", "stages.0.blocks.0.conv_dw"), _convnext),
    ("Swin", _SWIN, _swin),
    (
        "fairseq RoBERTa",
        _weights(f"{ROBERTA}.", "embed_tokens", "embed_positions", "layers.0.fc1"),
        _fairseq_roberta,
    ),
    *(
        (t, _weights(f"{m}.", *_BERT), partial(_bert, m))
        for t, m in (("RoBERTa", "roberta"), ("BERT", "bert"))
    ),
    *(("GPT-2", _weights(prefix, *_GPT2), partial(_gpt2, prefix)) for prefix in ("transformer.", "")),
    *(
        (
            "Megatron GPT-2",
            (*_EMBEDDINGS, f"language_model.{stack}.layers.0.mlp.dense_h_to_4h.weight"),
            partial(_megatron, stack),
        )
        for stack in ("encoder", "transformer")
    ),
    ("Transformer-XL", ("r_w_bias", *_weights("", *_TXL)), _transformer_xl),
    ("LLaMA-like", _weights("model.", "embed_tokens", "layers.0.mlp.gate_proj"), _llama),
)
