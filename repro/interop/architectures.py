"""Recognise a model by the names and shapes of its tensors."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
Sizes = dict[str, Any]
Family = tuple[str, tuple[str, ...], Callable[[Shapes], Sizes]]  # name, required tensors, sizes


@dataclass(frozen=True)
class Architecture:
    """A family of models, and the sizes of this one in elements, layers or pixels."""

    family: str
    sizes: Sizes

    def __str__(self) -> str:
        """Return the family and the sizes as one line."""
        return f"{self.family} ({', '.join(f'{k} {v}' for k, v in self.sizes.items() if v is not None)})"


def infer(shapes: Shapes) -> Architecture | None:
    """Return the architecture of a model with tensors of these names and shapes, or None if unknown."""
    for family, required, measure in FAMILIES:
        only = ONLY.get(family)
        alike = only is None or all(only.fullmatch(name) for name in shapes)
        if alike and all(name in shapes for name in required):
            try:
                return Architecture(family, measure(shapes))
            except (KeyError, ValueError, IndexError):  # known names, other shapes
                continue
    return None


def depth(shapes: Iterable[str], prefix: str) -> int:
    """Return the number of layers, whose tensors are named `<prefix><number>.<...>`."""
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


def _weights(prefix: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{name}.weight" for name in names)


def _language(
    family: str, embedding: str, positions: str | None, layers: str, inner: str, mlp: bool = True
) -> Family:
    """Return the entry of FAMILIES for a language model that has matrices of these names.

    Args:
        embedding: of the tokens, [vocabulary, width].
        positions: their embedding, [positions, width]; None if it has none.
        layers: how the names of all layers begin.
        inner: a matrix in each layer; with `mlp` the input of the MLP, [MLP, width].
    """
    required = _weights("", *filter(None, (embedding, positions, f"{layers}0.{inner}")))

    def measure(shapes: Shapes) -> Sizes:
        vocabulary, width = shapes[required[0]]
        return {
            "width": width,
            "layers": depth(shapes, layers),
            "MLP": shapes[required[-1]][0] if mlp else None,
            "vocabulary": vocabulary,
            "positions": shapes[required[1]][0] if positions else None,
        }

    return family, required, measure


ROBERTA = "encoder.sentence_encoder"
_VIT = ("pos_embed", *_weights("", "patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.mlp.fc1"))
_MAE = ("mask_token", *_weights("", "decoder_embed", "decoder_blocks.0.attn.qkv"))
_SWIN = ("patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table")
_TXL = ("word_emb.emb_layers.0", "layers.0.dec_attn.layer_norm", "layers.0.pos_ff.CoreNet.0")

# All names that models of these families may have: hiera, EVA, SAM, BEiT, SE-ResNet and ConvNeXt V2 have the
# required ones, but also others.
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

# The first family that fits counts.
FAMILIES: tuple[Family, ...] = (
    ("MAE", (*_VIT, *_MAE), _mae),
    ("ViT", _VIT, _vit),
    ("ResNet", _weights("", "conv1", "layer1.0.conv1", "layer4.0.conv1"), _resnet),
    ("ConvNeXt", _weights("", "stem.0", "stages.0.blocks.0.conv_dw"), _convnext),
    ("Swin", _SWIN, _swin),
    _language(
        "fairseq RoBERTa",
        f"{ROBERTA}.embed_tokens",
        f"{ROBERTA}.embed_positions",
        f"{ROBERTA}.layers.",
        "fc1",
    ),
    *(
        _language(
            family,
            f"{model}.embeddings.word_embeddings",
            f"{model}.embeddings.position_embeddings",
            f"{model}.encoder.layer.",
            "intermediate.dense",
        )
        for family, model in (("RoBERTa", "roberta"), ("BERT", "bert"))
    ),
    *(
        _language("GPT-2", f"{prefix}wte", f"{prefix}wpe", f"{prefix}h.", "attn.c_attn", mlp=False)
        for prefix in ("transformer.", "")
    ),
    *(
        _language(
            "Megatron GPT-2",
            "language_model.embedding.word_embeddings",
            "language_model.embedding.position_embeddings",
            f"language_model.{stack}.layers.",
            "mlp.dense_h_to_4h",
        )
        for stack in ("encoder", "transformer")
    ),
    ("Transformer-XL", ("r_w_bias", *_weights("", *_TXL)), _transformer_xl),
    _language("LLaMA-like", "model.embed_tokens", None, "model.layers.", "mlp.gate_proj"),
)
