"""Translate weights for timm, whose models have a name and keywords for the rest of their shape."""

from repro.interop.architectures import Architecture
from repro.interop.checkpoint import Checkpoint, Weights
from repro.interop.target import Made, Target, Translation

RESNETS = {18: "resnet18", 26: "resnet26", 34: "resnet34", 50: "resnet50", 101: "resnet101", 152: "resnet152"}
CONVNEXTS = {
    ((3, 3, 9, 3), 96): "convnext_tiny",
    ((3, 3, 27, 3), 96): "convnext_small",
    ((3, 3, 27, 3), 128): "convnext_base",
    ((3, 3, 27, 3), 192): "convnext_large",
}
SWINS = {
    ((2, 2, 6, 2), 96): "swin_tiny_patch4_window7_224",
    ((2, 2, 18, 2), 96): "swin_small_patch4_window7_224",
    ((2, 2, 18, 2), 128): "swin_base_patch4_window7_224",
    ((2, 2, 18, 2), 192): "swin_large_patch4_window7_224",
}
ASSUMED_HEAD = 64  # elements; true for all ViTs but the largest, which have 16 heads of 80
HEADS = ("model.kwargs.num_heads", "model_kwargs.num_heads")  # in our settings and in timm's


def vit_heads(width: int) -> int:
    """Return the usual number of heads of a ViT of this width."""
    return 16 if width == 1280 else max(width // ASSUMED_HEAD, 1)


def _vit(found: Checkpoint, weights: Weights, known: Architecture, heads: int | None) -> Made:
    """Translate ViTs, also MAE's fine-tuned ones; the names are timm's, and shapes become keywords."""
    sizes = known.sizes
    notes: list[str] = []
    name = _stated(found)
    config = {
        "img_size": sizes["image"],
        "patch_size": sizes["patch"],
        "in_chans": sizes["channels"],
        "embed_dim": sizes["width"],
        "depth": sizes["depth"],
        "mlp_ratio": sizes["MLP"] / sizes["width"],
        "num_classes": sizes["classes"],
        "global_pool": "token" if "norm.weight" in weights and "cls_token" in weights else "avg",
        "class_token": "cls_token" in weights,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "fc_norm": "fc_norm.weight" in weights,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in weights else None,
        "num_heads": heads or next((n for key in HEADS if (n := found.settings.get(key))), None),
    }
    if config["num_heads"] is None:
        if name is None:
            config["num_heads"] = vit_heads(sizes["width"])
            notes.append(f"{config['num_heads']} heads are assumed: the file does not say; --heads does")
        else:
            del config["num_heads"]  # keep the model's own
    usual = {"in_chans": 3, "mlp_ratio": 4.0, "class_token": True, "qkv_bias": True, "init_values": None}
    usual["fc_norm"] = config["global_pool"] == "avg"
    config = {key: value for key, value in config.items() if key not in usual or value != usual[key]}
    return Target("timm", name or "vit_base_patch16_224", config), weights, notes


def _mae(found: Checkpoint, weights: Weights, known: Architecture, heads: int | None) -> Made:
    """Translate MAE's encoder alone: a ViT without a head that ends in the norm."""
    encoder = {k: x for k, x in weights.items() if not k.startswith("decoder_") and k != "mask_token"}
    target, encoder, notes = _vit(found, encoder, known, heads)
    return target, encoder, ["the encoder only, for timm: --for transformers has the decoder, too", *notes]


def _resnet(found: Checkpoint, weights: Weights, known: Architecture, heads: int | None) -> Made:
    return _named(found, weights, known, RESNETS.get(known.sizes["layers"]))


def _convnext(found: Checkpoint, weights: Weights, known: Architecture, heads: int | None) -> Made:
    size = tuple(known.sizes["depths"]), known.sizes["widths"][0]
    return _named(found, weights, known, CONVNEXTS.get(size))


def _swin(found: Checkpoint, weights: Weights, known: Architecture, heads: int | None) -> Made:
    size = tuple(known.sizes["depths"]), known.sizes["width"]
    return _named(found, weights, known, SWINS.get(size))


def _named(found: Checkpoint, weights: Weights, known: Architecture, usual: str | None) -> Made:
    """Return a model that timm has under the name in the file, or else by its sizes."""
    name = _stated(found) or usual or known.family
    return Target("timm", name, {"num_classes": known.sizes["classes"]}), weights, []


def _stated(found: Checkpoint) -> str | None:
    """Return the model's name in the file if timm has such a model."""
    try:
        import timm
    except ImportError:
        return found.model
    name = found.model or ""
    return name if timm.is_model(name) else None


FAMILIES: dict[str | None, Translation] = {
    "ViT": _vit,
    "MAE": _mae,
    "ResNet": _resnet,
    "ConvNeXt": _convnext,
    "Swin": _swin,
}
