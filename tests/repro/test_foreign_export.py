"""Exported weights: in timm or transformers they compute what they did.

The foreign checkpoints are made from models of transformers by mappings written here, from the formats, and
in the other direction than those under test.
"""

import json
import runpy
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from containers import (
    fairseq_file,
    mae_finetuned_file,
    megatron_folder,
    official,
    timm_file,
    transformer_xl_folder,
    vit,
)
from safetensors import safe_open
from torch import Tensor, nn

from repro.errors import UserError

MAIN: Callable[[list[str]], int] = runpy.run_path(
    str(Path(__file__).resolve().parents[2] / "scripts" / "checkpoint.py")
)["main"]

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")


def exported(path: Path, *options: str) -> Path:
    """The file that the command writes."""
    out = path.parent / "out.safetensors"
    assert MAIN([str(path), "--export", str(out), *options]) == 0
    return out


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def rebuilt(path: Path) -> nn.Module:
    """The model that an export is for, with its weights, as its metadata says."""
    facts = metadata(path)
    config = json.loads(facts["config"])
    if facts["library"] == "timm":
        model = timm.create_model(facts["model"], **config)
        safetensors.torch.load_model(model, path)
    else:
        kind = getattr(transformers, facts["model"])
        weights = safetensors.torch.load_file(path)
        model = kind.from_pretrained(None, config=kind.config_class(**config), state_dict=weights)
    made: nn.Module = model.eval()
    return made


def randomised(model: nn.Module) -> nn.Module:
    """No weight is 0 or 1, so that none can be left out or mistaken for another unnoticed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for x in model.state_dict().values():
            if x.is_floating_point():
                x.copy_(0.2 * torch.randn(x.shape, generator=generator) + 0.1).abs_()
    return model.eval()


@torch.no_grad()
def same(one: nn.Module, two: nn.Module, *inputs: Any, **more: Any) -> None:
    first, second = (model(*inputs, **more) for model in (one, two))
    first, second = (getattr(x, "logits", x) for x in (first, second))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    assert first.std() > 0


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 3, 4, 5]])


# ---- timm


def test_timm_and_its_average(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, average = randomised(vit()), randomised(vit())
    with torch.no_grad():
        average.head.weight.neg_()  # type: ignore[operator, union-attr]
    path = timm_file(tmp_path, model, average)
    out = exported(path)
    assert (
        "checked: loads strictly into timm.create_model('deit_small_patch16_224', " in capsys.readouterr().out
    )
    same(rebuilt(out), model, IMAGES)
    facts = metadata(out)
    assert (facts["source"], facts["file"], facts["epoch"]) == ("timm checkpoint", "last.pth.tar", "299")
    assert facts["architecture"].startswith("ViT (width 384, depth 2")
    same(rebuilt(exported(path, "--ema", "--force")), average, IMAGES)


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_tiny", "convnext_tiny_hnf", "swin_tiny_patch4_window7_224"]
)
def test_convolutions_and_windows(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the name in the file, on the meta device; the usual ones by their sizes, too."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7)
    small = {key: torch.zeros(()).expand(x.shape) for key, x in model.state_dict().items()}
    from repro import interop
    from repro.interop import export

    found = interop.Checkpoint(tmp_path / "x", "test", small, model=name)
    for said in (name, None):
        found.model = said
        if said or not name.endswith("hnf"):
            made = export.translate(found)
            assert made.target is not None
            assert (made.target.model, made.target.config) == (name, {"num_classes": 7})
            assert made.notes == [f"checked: loads strictly into {made.target}"]
        else:
            with pytest.raises(UserError, match=r"does not fit timm.*; --for same keeps its names"):
                export.translate(found)
            assert export.translate(found, "same").weights == small


def test_nothing_is_written_where_the_check_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --for and without: one weight more than the model has."""
    weights = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=64, num_heads=1).state_dict()
    torch.save(weights | {"norm.scale": torch.ones(1)}, tmp_path / "x.pt")
    for arguments in ([], ["--for", "timm"]):
        assert MAIN([str(tmp_path / "x.pt"), "--export", str(tmp_path / "out"), *arguments]) == 2
        assert "does not fit timm.create_model(" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_mae_finetuned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = randomised(vit(global_pool="avg"))
    out = exported(mae_finetuned_file(tmp_path, model))
    assert "6 heads are assumed" in capsys.readouterr().out
    assert metadata(out)["model"] == "vit_base_patch16_224"
    same(rebuilt(out), model, IMAGES)


def mae(model: nn.Module) -> dict[str, Tensor]:
    """MAE's own names for a ViTMAEForPreTraining."""
    given = model.state_dict()
    weights = {
        "cls_token": given["vit.embeddings.cls_token"],
        "pos_embed": given["vit.embeddings.position_embeddings"],
        "mask_token": given["decoder.mask_token"],
        "decoder_pos_embed": given["decoder.decoder_pos_embed"],
    }
    for kind in ("weight", "bias"):
        weights[f"patch_embed.proj.{kind}"] = given[f"vit.embeddings.patch_embeddings.projection.{kind}"]
        weights[f"norm.{kind}"] = given[f"vit.layernorm.{kind}"]
        for name in ("embed", "norm", "pred"):
            weights[f"decoder_{name}.{kind}"] = given[f"decoder.decoder_{name}.{kind}"]
        for ours, theirs in (("blocks", "vit.layers"), ("decoder_blocks", "decoder.decoder_layers")):
            for i in range(2):
                block, layer = f"{ours}.{i}", f"{theirs}.{i}"
                parts = [given[f"{layer}.attention.{p}_proj.{kind}"] for p in ("q", "k", "v")]
                weights[f"{block}.attn.qkv.{kind}"] = torch.cat(parts)
                weights[f"{block}.attn.proj.{kind}"] = given[f"{layer}.attention.o_proj.{kind}"]
                weights[f"{block}.norm1.{kind}"] = given[f"{layer}.layernorm_before.{kind}"]
                weights[f"{block}.norm2.{kind}"] = given[f"{layer}.layernorm_after.{kind}"]
                for fc in ("fc1", "fc2"):
                    weights[f"{block}.mlp.{fc}.{kind}"] = given[f"{layer}.mlp.{fc}.{kind}"]
    assert sum(x.numel() for x in weights.values()) == sum(x.numel() for x in given.values())
    return weights


def test_mae_pretrained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole for transformers; the encoder for timm, which computes what transformers' does."""
    config = transformers.ViTMAEConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256, image_size=32,
        patch_size=8, decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=16,
        decoder_intermediate_size=64, layer_norm_eps=1e-6,
    )  # fmt: skip
    model = randomised(transformers.ViTMAEForPreTraining(config))
    content = {"epoch": 1, "arch": "mae", "state_dict": mae(model), "args": Namespace(norm_pix_loss=True)}
    torch.save(content, tmp_path / "x.pth.tar")
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    out = exported(tmp_path / "x.pth.tar", "--for", "transformers")
    new: Any = rebuilt(out)
    assert new.config.norm_pix_loss is True
    same(new, model, IMAGES, noise=noise)
    assert any(name.startswith("vit.encoder.layer.0.attention.attention") for name in keys(out))  # the hub's

    out = exported(tmp_path / "x.pth.tar", "--force")
    assert "the encoder only" in capsys.readouterr().out
    encoder: Any = rebuilt(out)
    assert not [name for name in keys(out) if name.startswith(("decoder", "mask"))]
    model.config.mask_ratio = model.vit.embeddings.config.mask_ratio = 0.0  # type: ignore[union-attr]
    order = torch.arange(16.0).expand(2, -1)
    with torch.no_grad():
        hidden = model.vit(IMAGES, noise=order).last_hidden_state  # type: ignore[operator, union-attr]
        torch.testing.assert_close(encoder.forward_features(IMAGES), hidden, rtol=1e-4, atol=1e-5)


def keys(path: Path) -> list[str]:
    return list(safetensors.torch.load_file(path))


# ---- fairseq


ROBERTA = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=56,
    max_position_embeddings=18, type_vocab_size=1, layer_norm_eps=1e-5,
)  # fmt: skip


def fairseq(model: nn.Module, merged: bool = False) -> dict[str, Tensor]:
    """fairseq's names for a model of transformers; `merged` is the form of before 2020."""
    given = model.state_dict()
    base, old = "encoder.sentence_encoder", "roberta.embeddings"
    # fairseq has no segments: what theirs adds to every token is in its embedding of tokens
    tokens = given[f"{old}.word_embeddings.weight"] + given[f"{old}.token_type_embeddings.weight"]
    weights = {
        f"{base}.version": torch.tensor([3.0]),
        f"{base}.embed_tokens.weight": tokens,
        f"{base}.embed_positions.weight": given[f"{old}.position_embeddings.weight"],
        "encoder.lm_head.weight": tokens,
    }
    for kind in ("weight", "bias"):
        norm = "emb_layer_norm" if merged else "layernorm_embedding"
        weights[f"{base}.{norm}.{kind}"] = given[f"{old}.LayerNorm.{kind}"]
        for i in range(2):
            to, layer = f"{base}.layers.{i}", f"roberta.encoder.layer.{i}"
            parts = {n[0]: given[f"{layer}.attention.self.{n}.{kind}"] for n in ("query", "key", "value")}
            if merged:
                weights[f"{to}.self_attn.in_proj_{kind}"] = torch.cat([parts[p] for p in "qkv"])
            else:
                weights |= {f"{to}.self_attn.{p}_proj.{kind}": x for p, x in parts.items()}
            weights[f"{to}.self_attn.out_proj.{kind}"] = given[f"{layer}.attention.output.dense.{kind}"]
            weights[f"{to}.self_attn_layer_norm.{kind}"] = given[f"{layer}.attention.output.LayerNorm.{kind}"]
            weights[f"{to}.fc1.{kind}"] = given[f"{layer}.intermediate.dense.{kind}"]
            weights[f"{to}.fc2.{kind}"] = given[f"{layer}.output.dense.{kind}"]
            weights[f"{to}.final_layer_norm.{kind}"] = given[f"{layer}.output.LayerNorm.{kind}"]
        for name in ("dense", "layer_norm"):
            key = f"lm_head.{name}.{kind}"
            weights[f"encoder.{key}"] = given.get(key, torch.ones(2))
        for name in ("dense", "out_proj"):
            if f"classifier.{name}.{kind}" in given:
                key = f"classification_heads.sentence_classification_head.{name}.{kind}"
                weights[key] = given[f"classifier.{name}.{kind}"]
    weights["encoder.lm_head.bias"] = given.get("lm_head.bias", torch.ones(2))
    return weights


def language_model() -> nn.Module:
    model = randomised(transformers.RobertaForMaskedLM(transformers.RobertaConfig(**ROBERTA)))
    with torch.no_grad():
        model.roberta.embeddings.token_type_embeddings.weight.zero_()  # type: ignore[operator, union-attr]
    return model


@pytest.mark.parametrize("merged", [False, True])
def test_fairseq(merged: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = language_model()
    out = exported(fairseq_file(tmp_path, fairseq(model, merged), encoder_attention_heads=4))
    assert "checked: loads strictly into transformers.RobertaForMaskedLM with" in capsys.readouterr().out
    new = rebuilt(out)
    same(new, model, TOKENS)
    assert new.lm_head.decoder.weight is new.roberta.embeddings.word_embeddings.weight  # type: ignore[union-attr]


def test_fairseq_finetuned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = transformers.RobertaConfig(**ROBERTA, num_labels=3)
    model = randomised(transformers.RobertaForSequenceClassification(config))
    out = exported(fairseq_file(tmp_path, fairseq(model)), "--heads", "4")
    assert "left out: the language model's head" in capsys.readouterr().out
    same(rebuilt(out), model, TOKENS)


def test_fairseq_of_another_shape_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A weight too many, one too few, an output of its own: nothing is left out or made up, or written."""
    base = "encoder.sentence_encoder"
    for change, message in (
        (
            {f"{base}.adapter.weight": torch.ones(2)},
            "adapter.weight has no place in the model of transformers",
        ),
        ({f"{base}.layers.1.fc2.bias": None}, "missing roberta.encoder.layer.1.output.dense.bias"),
        (
            {"encoder.lm_head.weight": torch.ones(56, 32)},
            "the output's weights are not those of the embedding",
        ),
        ({f"{base}.layers.1.fc2.bias": torch.ones(31)}, "does not fit transformers.RobertaForMaskedLM"),
    ):
        weights: dict[str, Any] = {**fairseq(language_model()), **change}
        path = fairseq_file(tmp_path, {k: x for k, x in weights.items() if x is not None})
        assert MAIN([str(path), "--export", str(tmp_path / "out.safetensors"), "--heads", "4"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not list(tmp_path.glob("*safetensors*"))
        assert MAIN([str(path), "--export", str(tmp_path / "out.safetensors"), "--for", "same"]) == 0
        (tmp_path / "out.safetensors").unlink()


# ---- Megatron


def megatron(
    model: nn.Module, version: float, attention: str, stack: str, ranks: int = 1
) -> list[dict[str, Tensor]]:
    """Megatron's names for a GPT2LMHeadModel, for each rank; the version decides on the order of rows."""
    given = model.state_dict()
    heads, width = model.config.n_head, model.config.n_embd  # type: ignore[union-attr]

    def rows(x: Tensor) -> list[Tensor]:
        """q, k and v as [3, heads, elements, ...]: the heads of each rank, in the version's order."""
        x = x.reshape(3, heads, width // heads, *x.shape[1:])
        order = {0: (0, 1, 2), 1: (1, 2, 0), 2: (1, 0, 2), 3: (1, 0, 2)}[int(version)]
        return [y.permute(*order, *range(3, y.dim())).flatten(0, 2) for y in x.chunk(ranks, 1)]

    def put(name: str, parts: list[Tensor]) -> None:
        for rank, x in zip(all_ranks, parts, strict=True):
            rank[f"language_model.{name}"] = x.contiguous()

    all_ranks: list[dict[str, Tensor]] = [{} for _ in range(ranks)]
    put("embedding.word_embeddings.weight", list(given["transformer.wte.weight"].chunk(ranks)))
    put("embedding.position_embeddings.weight", [given["transformer.wpe.weight"]] * ranks)
    for kind in ("weight", "bias"):
        put(f"{stack}.final_layernorm.{kind}", [given[f"transformer.ln_f.{kind}"]] * ranks)
        for i in range(2):
            to, layer = f"{stack}.layers.{i}", f"transformer.h.{i}"
            put(f"{to}.input_layernorm.{kind}", [given[f"{layer}.ln_1.{kind}"]] * ranks)
            put(f"{to}.post_attention_layernorm.{kind}", [given[f"{layer}.ln_2.{kind}"]] * ranks)
            put(f"{to}.{attention}.query_key_value.{kind}", rows(given[f"{layer}.attn.c_attn.{kind}"].t()))
            put(f"{to}.mlp.dense_h_to_4h.{kind}", list(given[f"{layer}.mlp.c_fc.{kind}"].t().chunk(ranks)))
            for new, old in ((f"{attention}.dense", "attn.c_proj"), ("mlp.dense_4h_to_h", "mlp.c_proj")):
                x = given[f"{layer}.{old}.{kind}"]
                put(f"{to}.{new}.{kind}", list(x.t().chunk(ranks, 1)) if kind == "weight" else [x] * ranks)
    return all_ranks


@pytest.mark.filterwarnings("ignore::UserWarning")  # of .t() on biases, which is what is meant
@pytest.mark.parametrize(
    ("version", "attention", "stack", "ranks", "fused"),
    [
        (0, "attention", "transformer", 1, True),
        (0, "attention", "transformer", 2, True),
        (1.0, "attention", "transformer", 2, True),
        (2.0, "self_attention", "encoder", 1, False),
        (3.0, "self_attention", "encoder", 2, True),
    ],
)
def test_megatron(
    version: float, attention: str, stack: str, ranks: int, fused: bool, tmp_path: Path
) -> None:
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=16, bos_token_id=None, eos_token_id=None,
        activation_function="gelu_new" if fused else "gelu",
    )  # fmt: skip
    model = randomised(transformers.GPT2LMHeadModel(config))
    parts = megatron(model, version, attention, stack, ranks)
    if ranks > 1:  # as the last stage has it
        for part in parts:
            embedding = part["language_model.embedding.word_embeddings.weight"]
            part["word_embeddings_for_head.weight"] = embedding
    folder = megatron_folder(
        tmp_path / "run", {f"mp_rank_{i:02d}": part for i, part in enumerate(parts)}, version, stack,
        num_attention_heads=4, tensor_model_parallel_size=ranks, padded_vocab_size=64, bias_gelu_fusion=fused,
        layernorm_epsilon=1e-5,
    )  # fmt: skip
    out = exported(folder)
    same(rebuilt(out), model, TOKENS)
    assert "lm_head.weight" not in keys(out)


def test_a_part_of_megatrons_ranks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=16,
                                     bos_token_id=None, eos_token_id=None)  # fmt: skip
    parts = megatron(transformers.GPT2LMHeadModel(config), 0, "attention", "transformer", 2)
    megatron_folder(tmp_path, {"mp_rank_00": parts[0]}, 0, "transformer", num_attention_heads=4,
                    tensor_model_parallel_size=2, padded_vocab_size=64)  # fmt: skip
    file = tmp_path / "iter_0150000" / "mp_rank_00" / "model_optim_rng.pt"
    assert MAIN([str(file), "--export", str(tmp_path / "out.safetensors")]) == 2
    assert "is one of 2 parts: name the folder that has all of them" in capsys.readouterr().err


# ---- the names as they are


def test_hugging_face(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = language_model()
    model.save_pretrained(tmp_path / "model", max_shard_size="9KB")  # type: ignore[operator]
    out = exported(tmp_path / "model")
    assert "checked: loads strictly into transformers.RobertaForMaskedLM" in capsys.readouterr().out
    same(rebuilt(out), model, TOKENS)


def test_transformer_xl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shared weights are stored once, and are under both names again when this package reads the file."""
    weights = transformer_xl_folder(tmp_path)
    out = exported(tmp_path / "model.pt")
    assert "no translation for this architecture: the names are as they were" in capsys.readouterr().out
    assert "out.weight" not in keys(out)
    from repro import interop

    again = interop.read(out)
    assert again.weights.keys() == weights.keys()
    assert all(torch.equal(again.weights[name], weights[name]) for name in weights)


def test_refusals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "x.pt")
    torch.save(official([torch.ones(2)]), tmp_path / "o.pt")
    out = tmp_path / "out.safetensors"
    for arguments, message in (
        (["x.pt", "--ema"], "has no averaged weights to export"),
        (["o.pt"], "has no weights to export; its optimizer's state can be converted"),
        (["x.pt", "--for", "timm"], "holds an unknown model: no translation for timm"),
    ):
        assert MAIN([str(tmp_path / arguments[0]), *arguments[1:], "--export", str(out)]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()
    out.write_text("precious")
    assert MAIN([str(tmp_path / "x.pt"), "--export", str(out)]) == 2
    assert "exists: give another name, or --force" in capsys.readouterr().err

    def full(weights: Any, path: Path, facts: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    from repro.interop import export

    monkeypatch.setattr(export, "save_file", full)
    assert MAIN([str(tmp_path / "x.pt"), "--export", str(out), "--force"]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert not list(tmp_path.glob(".tmp*"))
