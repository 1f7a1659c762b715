"""Checkpoints of all kinds: what the command says of them, and their optimizer's state as ours."""

import copy
import json
import runpy
import shutil
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from containers import (
    STEP,
    fairseq_file,
    mae_finetuned_file,
    megatron_folder,
    official,
    timm_file,
    transformer_xl_folder,
    vit,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from toy import ToyTask

import adan_optim
from repro import interop
from repro.errors import UserError
from repro.interop import unpickle
from repro.train import checkpoint
from repro.train.config import TrainConfig
from repro.train.trainer import train

MAIN: Callable[[list[str]], int] = runpy.run_path(
    str(Path(__file__).resolve().parents[2] / "scripts" / "checkpoint.py")
)["main"]


def shown(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert MAIN([str(path), *options]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def roberta() -> dict[str, Tensor]:
    """fairseq's names, of two layers."""
    base = "encoder.sentence_encoder."
    shapes = {"embed_tokens": (20, 8), "embed_positions": (12, 8), "layernorm_embedding": (8,)}
    for i in range(2):
        shapes |= {f"layers.{i}.self_attn.{p}_proj": (8, 8) for p in ("q", "k", "v", "out")}
        shapes |= {f"layers.{i}.fc1": (16, 8), f"layers.{i}.fc2": (8, 16)}
    weights = {f"{base}{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    return weights | {
        "encoder.lm_head.weight": weights[f"{base}embed_tokens.weight"],
        f"{base}version": torch.ones(1),
    }


def gpt2(parts: int = 1, layers: int = 2) -> dict[str, Tensor]:
    """Megatron's names, one rank of `parts`."""
    weights = {
        "embedding.word_embeddings.weight": torch.randn(32 // parts, 8),
        "embedding.position_embeddings.weight": torch.ones(16, 8),
        "encoder.final_layernorm.weight": torch.ones(8),
    }
    for i in range(layers):
        weights |= {
            f"encoder.layers.{i}.self_attention.query_key_value.weight": torch.randn(24 // parts, 8),
            f"encoder.layers.{i}.self_attention.dense.weight": torch.randn(8, 8 // parts),
            f"encoder.layers.{i}.mlp.dense_h_to_4h.weight": torch.randn(32 // parts, 8),
            f"encoder.layers.{i}.mlp.dense_4h_to_h.weight": torch.randn(8, 32 // parts),
        }
    return {f"language_model.{name}": x for name, x in weights.items()}


def test_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = vit()
    average = copy.deepcopy(model)
    path = timm_file(tmp_path, model, average)
    text = shown(path, capsys)
    count = sum(p.numel() for p in model.parameters())
    assert f"{path}: timm checkpoint\n" in text
    assert "deit_small_patch16_224: ViT (width 384, depth 2, MLP 1536, patch 16, image 32, channels 3" in text
    assert f"parameters  {count:,} in 32 tensors, {4 * count:,} bytes of float32\n" in text
    assert "averaged weights, 32 tensors" in text
    assert "at optimizer: Adan of sail-sg/Adan in any version" in text
    assert (
        f"32 parameters with a state, 128 tensors, {16 * count:,} bytes, step 7; 16 bytes per param" in text
    )
    assert "group 0: 32 parameters, lr=0.015, betas=(0.98, 0.92, 0.99), eps=1e-08" in text
    assert "position    epoch 299\n" in text
    assert "metric      metric 81.125\n" in text
    assert (
        "settings    model=deit_small_patch16_224, opt=adan, lr=0.015, opt_betas=[0.98, 0.92, 0.99]" in text
    )
    assert "1 more: --all shows them" in text
    assert "log_interval = 50" in shown(path, capsys, "--all")
    assert "not loaded" not in text


def test_mae_pretraining(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Module()
    for name, x in {**vit(num_classes=0).state_dict(), **decoder()}.items():
        model.register_parameter(name.replace(".", "|"), nn.Parameter(x))
    path = timm_file(tmp_path, model, model_="mae")
    content = torch.load(path, weights_only=False)
    content["state_dict"] = {f"module.{k.replace('|', '.')}": x for k, x in content["state_dict"].items()}
    torch.save(content, path)
    text = shown(path, capsys)
    assert "MAE pre-training checkpoint (timm's saver)" in text
    assert "MAE (width 384, depth 2, MLP 1536, patch 16, image 32" in text
    assert "decoder width 32, decoder depth 1" in text


def decoder() -> dict[str, Tensor]:
    return {
        "mask_token": torch.zeros(1, 1, 32),
        "decoder_embed.weight": torch.randn(32, 384),
        "decoder_blocks.0.attn.qkv.weight": torch.randn(96, 32),
    }


def test_mae_finetuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(mae_finetuned_file(tmp_path, vit(global_pool="avg")), capsys)
    assert "checkpoint in the layout of MAE's, DeiT's and DETR's scripts" in text
    assert "vit_base_patch16: ViT (width 384" in text
    assert "(official)" in text
    assert "lr_scale=0.65" in text
    assert "epoch 90" in text
    assert "layer_decay=0.65" in text
    assert "kept as plain data: pathlib.PosixPath" in text


def test_fairseq(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fairseq_file(tmp_path, roberta(), encoder_attention_heads=2)
    text = shown(path, capsys)
    assert "fairseq checkpoint" in text
    assert "roberta: fairseq RoBERTa (width 8, layers 2, MLP 16, vocabulary 20, positions 12)" in text
    count = 20 * 8 + 12 * 8 + 8 + 2 * (4 * 64 + 2 * 128)
    assert f"parameters  {count:,} in 15 tensors, {4 * count:,} bytes of float32; 1 buffers" in text
    assert "1 more names share these tensors" in text  # the output's are the embedding's
    assert "at last_optimizer_state: Adan of sail-sg/Adan" in text
    assert "position    epoch 16, step 800000" in text
    assert "validation loss 1.903" in text
    assert "optimization.lr=[0.001], optimization.clip_norm=5.0" in text
    for name in ("absent_fairseq.Choice", "absent_fairseq.Meter", "absent_fairseq.Meters"):
        assert name in text
    flat = shown(fairseq_file(tmp_path, roberta(), flat=True), capsys)
    assert "they fit an optimizer of one flat parameter only" in flat


def test_megatron(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = megatron_folder(tmp_path, {"mp_rank_00": gpt2()}, 3.0, num_attention_heads=2)
    texts = [
        shown(path, capsys)
        for path in (
            folder,
            folder / "iter_0150000",
            folder / "iter_0150000" / "mp_rank_00" / "model_optim_rng.pt",
        )
    ]
    for text in texts:
        assert "Megatron-LM checkpoint (checkpoint_version 3.0)" in text
        assert "Megatron GPT-2 (width 8, layers 2, MLP 32, vocabulary 32, positions 16)" in text
        assert "optimizer.optimizer: Adan of sail-sg/Adan" in text
        assert "step 150000" in text
        assert "lr=0.0025" in text
        assert "num_attention_heads=2" in text
        assert "bytes of fp32 copies of the parameters, not counted as states" in text
        assert "kept as plain data: absent_megatron.ModelType" in text
    assert MAIN(["convert", str(folder), str(tmp_path / "out.pt")]) == 2
    assert str(folder / "iter_0150000" / "mp_rank_00" / "model_optim_rng.pt") in capsys.readouterr().err


@pytest.mark.parametrize("version", [0, 1.0, 3.0])
def test_megatrons_ranks_are_joined(version: float, tmp_path: Path) -> None:
    """Two parts of each tensor, two stages of layers: the whole has the sizes, and every row is somewhere."""
    ranks = {f"mp_rank_{part:02d}_{stage:03d}": gpt2(2, 1) for part in (0, 1) for stage in (0, 1)}
    megatron_folder(tmp_path, ranks, version, tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
    found = interop.read(tmp_path)
    assert {name: tuple(x.shape) for name, x in found.weights.items()} == {
        name: tuple(x.shape) for name, x in gpt2().items()
    }
    assert len(found.optimizers) == 4
    name = "language_model.encoder.layers.1.self_attention.query_key_value.weight"
    local = name.replace("layers.1", "layers.0")
    first, second = (ranks[f"mp_rank_{part:02d}_001"][local] for part in (0, 1))
    expected = torch.cat([first, second])
    if version == 0:  # queries of both, keys of both, values of both
        expected = torch.cat([x for i in (0, 4, 8) for x in (first[i : i + 4], second[i : i + 4])])
    assert torch.equal(found.weights[name], expected)
    dense = "language_model.encoder.layers.0.self_attention.dense.weight"
    pieces = [ranks[f"mp_rank_{part:02d}_000"][dense] for part in (0, 1)]
    assert torch.equal(found.weights[dense], torch.cat(pieces, 1))
    shutil.rmtree(tmp_path / "iter_0150000" / "mp_rank_01_001")
    with pytest.raises(UserError, match="ranks missing: 3 are there"):
        interop.read(tmp_path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_transformer_xl(legacy: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A whole module of classes that are not there, with the source of each in the old format."""
    weights = transformer_xl_folder(tmp_path, legacy)
    found = interop.read(tmp_path)
    assert found.weights.keys() == weights.keys()
    assert all(torch.equal(found.weights[name], weights[name]) for name in weights)
    assert found.buffers == {"inv_freq"}
    text = shown(tmp_path, capsys)
    assert "Transformer-XL model, a whole pickled module (absent_txl.MemTransformerLM)" in text
    assert "Transformer-XL (width 8, layers 2, heads 2, head 4, MLP 16, vocabulary 20)" in text
    count = sum(x.numel() for name, x in weights.items() if name not in ("inv_freq", "out.weight"))
    assert f"parameters  {count:,} in " in text
    assert "1 more names share" in text
    assert "at optimizer.pt: Adan of sail-sg/Adan" in text
    assert "n_layer=2" in text
    assert "mem_len=150" in text
    file = shown(tmp_path / "model.pt", capsys)
    assert "optimizer   no state in it" in file
    assert "optimizer.pt next to it has the optimizer's state" in file
    assert MAIN(["convert", str(tmp_path / "model.pt"), str(tmp_path / "out.pt")]) == 2
    assert "Transformer-XL keeps that in optimizer.pt next to it" in capsys.readouterr().err


def test_hugging_face(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint of the Trainer, and the same model in several files."""
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    config = transformers.RobertaConfig(**sizes, vocab_size=30, max_position_embeddings=20)
    model = transformers.RobertaForMaskedLM(config)
    data = [{"input_ids": [3, 4, 5, 6], "labels": [3, 4, 5, 6]} for _ in range(4)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True,
        learning_rate=0.004, dataloader_pin_memory=False, logging_strategy="no",
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=data).train()
    text = shown(tmp_path / "checkpoint-2", capsys)
    assert "Hugging Face Trainer checkpoint" in text
    assert "RobertaForMaskedLM: RoBERTa (width 16, layers 2, MLP 32, vocabulary 30, positions 20)" in text
    count = sum(p.numel() for p in model.parameters())
    assert f"parameters  {count:,} in " in text
    assert "at optimizer.pt: AdamW or Adam of torch.optim (torch)" in text
    assert f"{8 * count:,} bytes, step 2; 8 bytes per parameter" in text
    assert "step 2" in text
    assert "learning_rate=0.004" in text
    assert "transformers.training_args.TrainingArguments" in shown(tmp_path / "checkpoint-2", capsys, "--all")
    assert MAIN(["convert", str(tmp_path / "checkpoint-2"), str(tmp_path / "out.pt")]) == 2
    assert (
        f"name the file with the optimizer's state: {tmp_path / 'checkpoint-2' / 'optimizer.pt'}\n"
        in capsys.readouterr().err
    )

    model.save_pretrained(tmp_path / "parts", max_shard_size="5KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    found = interop.read(tmp_path / "parts")
    assert sum(x.numel() for x in found.parameters().values()) == count
    index = tmp_path / "parts" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../../secret.bin"}}))
    with pytest.raises(UserError, match=r"names '\.\./\.\./secret\.bin', which is not a file in its folder"):
        interop.read(tmp_path / "parts")


def test_ours(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    train(ToyTask(), config, "run")
    capsys.readouterr()
    run = Path(config.run.root) / "toy" / "run"
    text = shown(run, capsys)
    assert "checkpoint of a run of ours" in text
    assert "toy_net: no architecture that is known here" in text
    assert "parameters  30 in 6 tensors, 120 bytes of float32; 3 buffers, 40 bytes" in text
    assert "averaged weights, 9 tensors" in text
    assert "at training.pt: optimizer: Adan of this package (adan)" in text
    assert "position    epoch 4, step 32" in text
    assert "best ema_accuracy" in text
    assert "optimizer.name=adan" in text
    (step, *_) = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    assert "position    epoch 4, step 32" in shown(step, capsys)
    assert "training.pt of a run of ours" in shown(step / "training.pt", capsys)
    assert "safetensors file" in shown(step / checkpoint.EMA, capsys)
    (step / checkpoint.MODEL).write_bytes(b"")
    assert MAIN([str(step)]) == 2
    assert "is damaged: model.safetensors has 0 bytes" in capsys.readouterr().err


def test_bare_and_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    compiled = {f"_orig_mod.module.{name}": x.half() for name, x in model.state_dict().items()}
    torch.save({f"module.{name}": x for name, x in compiled.items()}, tmp_path / "a.pt")
    text = shown(tmp_path / "a.pt", capsys)
    assert "state dict of a model" in text
    assert "with tensors 0.weight, 0.bias, 1.weight, ..." in text
    assert "parameters  10 in 4 tensors, 20 bytes of float16; 3 buffers, 10 bytes of float16" in text
    torch.save(
        {"model_state_dict": model.state_dict(), "epoch": 3, "config": {"a": {"lr": 0.1}}}, tmp_path / "b.pt"
    )
    text = shown(tmp_path / "b.pt", capsys)
    assert "training checkpoint of an unknown writer" in text
    assert "epoch 3" in text
    assert "a.lr=0.1" in text
    torch.save(
        {"pytorch-lightning_version": "2.5", "state_dict": model.state_dict(), "global_step": 12,
         "optimizer_states": [official(list(model.parameters()))], "hyper_parameters": {"lr": 1}},
        tmp_path / "c.ckpt",
    )  # fmt: skip
    text = shown(tmp_path / "c.ckpt", capsys)
    assert "Lightning checkpoint (version 2.5)" in text
    assert "at optimizer_states.0: Adan of sail-sg/Adan" in text
    save_file({"w": torch.ones(2, 3)}, tmp_path / "d.safetensors")
    assert "6 in 1 tensors, 24 bytes of float32" in shown(tmp_path / "d.safetensors", capsys)


STATES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "timm": (lambda p: timm_file(p, vit()), "optimizer"),
    "MAE": (lambda p: mae_finetuned_file(p, vit(global_pool="avg")), "optimizer"),
    "fairseq": (lambda p: fairseq_file(p, roberta()), "last_optimizer_state"),
    "Megatron": (
        lambda p: (
            megatron_folder(p, {"mp_rank_00": gpt2()}, 3.0) / "iter_0150000/mp_rank_00/model_optim_rng.pt"
        ),
        "optimizer.optimizer",
    ),
    "Transformer-XL": (lambda p: [transformer_xl_folder(p), p / "optimizer.pt"][1], ""),  # type: ignore[return-value]
}


@pytest.mark.parametrize("kind", STATES)
def test_the_official_adan_becomes_ours(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In its place, every number of it; all the rest of the file stays, foreign classes as plain data."""
    make, place = STATES[kind]
    path = make(tmp_path)
    assert MAIN(["convert", str(path), str(tmp_path / "out.pt")]) == 0, capsys.readouterr().err
    output = capsys.readouterr().out
    assert f"{path}{' at ' if place else ''}{place}: Adan of sail-sg/Adan" in output
    assert "also construct the optimizer with max_grad_norm=5.0" in output
    old, _ = unpickle.read(path)
    new, names = unpickle.read(tmp_path / "out.pt")
    assert names == []  # the file needs nothing foreign any more
    assert ("written as plain data" in output) == (kind in ("MAE", "fairseq", "Megatron"))
    for key in filter(None, place.split(".")):
        assert old.keys() == new.keys()
        for k in old.keys() - {key}:
            assert str(unpickle.plain(old[k])) == str(unpickle.plain(new[k]))
        old, new = old[key], new[key]
    assert new.get("loss_scale") == old.get("loss_scale")
    for i, state in old["state"].items():
        previous = state["neg_pre_grad"] if "neg_pre_grad" in state else -state["pre_grad"]
        assert torch.equal(new["state"][i]["neg_pre_grad"], previous)
        assert all(
            torch.equal(new["state"][i][k], state[k]) for k in ("exp_avg", "exp_avg_diff", "exp_avg_sq")
        )
        assert new["state"][i]["step"] == STEP
    params = [torch.zeros_like(s["exp_avg"]).requires_grad_() for s in old["state"].values()]
    ours = adan_optim.Adan(params, lr=9.0)
    ours.load_state_dict(new)
    for p in params:
        p.grad = torch.ones_like(p)
    ours.step()
    assert ours.param_groups[0]["lr"] == 0.015
    assert all(ours.state[p]["step"] == STEP + 1 for p in params)


def deep(path: Path) -> None:
    """Settings of lists in lists; the pickle by hand, because Python's pickler stops before."""

    def text(word: str) -> bytes:
        return b"X" + len(word).to_bytes(4, "little") + word.encode()

    optimizer = b"}(" + text("state") + b"}" + text("param_groups") + b"]u"
    lists = b"]" * 100_000 + b"a" * 99_999
    content = b"\x80\x02}(" + text("optimizer") + optimizer + text("args") + lists + b"u."
    with zipfile.ZipFile(path, "w") as file:
        for name, data in (("data.pkl", content), ("version", b"3\n"), ("byteorder", b"little")):
            file.writestr(f"x/{name}", data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no such file or folder"),
        (lambda p: p.mkdir(), "no checkpoint of a known kind, nor a file of one"),
        (
            lambda p: (p.mkdir(), (p / "a.pth").touch(), (p / "b.pt").touch()),
            "name one of its files: a.pth, b.pt",
        ),
        (lambda p: torch.save({"lr": 1}, p), "neither weights nor an optimizer's state in it, only: lr"),
        (lambda p: torch.save({}, p), "neither weights nor an optimizer's state in it, only: nothing"),
        (lambda p: torch.save(Namespace(a=1), p), "in it, only: Namespace"),
        (deep, "nested deeper than in any checkpoint"),
        (lambda p: p.write_text("epoch"), "was not written by torch.save, or is damaged"),
        (lambda p: (p.mkdir(), (p / "checkpoints").mkdir()), "has no checkpoint in it"),
        (
            lambda p: (p.mkdir(), (p / "latest_checkpointed_iteration.txt").write_text("10")),
            "says 10, but there is no folder .*iter_0000010",
        ),
        (
            lambda p: (p.mkdir(), (p / "latest_checkpointed_iteration.txt").write_text("ten")),
            "says 'ten': neither",
        ),
        (lambda p: (p / "mp_rank_00").mkdir(parents=True), "mp_rank_00 has none of model_optim_rng.pt"),
        (
            lambda p: (p.mkdir(), (p / "model.safetensors").write_bytes(b"\x10" * 100)),
            "damaged, or no safetensors file",
        ),
        (
            lambda p: (p.mkdir(), (p / "model.safetensors.index.json").write_text("{}")),
            "has no weight_map from tensors to files",
        ),
        (
            lambda p: (p.mkdir(), (p / "trainer_state.json").write_text("{")),
            "trainer_state.json: not JSON",
        ),
    ],
)
def test_bad_input(
    make: Callable[[Path], Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "x")
    assert MAIN([str(tmp_path / "x")]) == 2
    output, error = capsys.readouterr()
    assert pytest.importorskip("re").search(message, error)
    assert error.count("\n") == 1
    assert output == ""


def places(content: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All keys within dicts and lists, from the outside in, down to the fourth level."""
    inside = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    found = [(*above, key) for key, _ in inside]
    return found + [p for key, x in inside for p in places(x, (*above, key)) if len(above) < 3]


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the files of each kind hold."""
    folder = tmp_path_factory.mktemp("kinds")
    small: dict[str, Any] = dict(depth=1, embed_dim=16, num_heads=2)
    files = {
        "fairseq": fairseq_file(folder, roberta()),
        "Megatron": megatron_folder(folder, {"mp_rank_00": gpt2()}, 3.0),
        "MAE": mae_finetuned_file(folder, vit(**small)),
        "timm": timm_file(folder, vit(**small)),
    }
    files["Megatron"] = folder / "iter_0150000" / "mp_rank_00" / "model_optim_rng.pt"
    return {kind: unpickle.plain(unpickle.read(file)[0], namespaces=True) for kind, file in files.items()}


JUNK = [
    None,
    5,
    -1.5,
    "text",
    [],
    {},
    [1],
    {"a": 1},
    {0: {}},
    torch.ones(3),
    torch.tensor(2),
    Namespace(x=1),
    True,
]


@pytest.mark.parametrize("kind", ["fairseq", "Megatron", "MAE", "timm"])
def test_junk_in_a_known_place(
    kind: str, contents: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is in the place of a value that a reader looks at: it is shown, or refused in one line."""
    random = Random(kind)
    everywhere = places(contents[kind])
    for *outer, last in random.sample(everywhere, 10) + [place for place in everywhere if len(place) == 1]:
        content = holder = dict(contents[kind])
        for key in outer:  # copies of the containers on the way, not of the rest
            holder[key] = holder = list(holder[key]) if isinstance(holder[key], list) else dict(holder[key])
        holder[last] = random.choice(JUNK)
        torch.save(content, tmp_path / "x.pt")
        path, out = str(tmp_path / "x.pt"), str(tmp_path / "out.pt")
        for words in (
            [path, "--all"],
            [path, "--export", out, "--force", "--heads", "2"],
            ["convert", path, out, "--force"],
        ):
            assert MAIN(words) in (0, 2), (outer, last, holder[last])
            error = capsys.readouterr().err
            assert error == "" or error.startswith("error: ")
            assert error.count("\n") <= 1
