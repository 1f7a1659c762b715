"""Checkpoints of all kinds as their writers lay them out, of small models: with the writers themselves where
they are at hand (timm, transformers, our loop), else by hand from what is known of the formats."""

import sys
import types
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

STEP = 7


def official(params: Sequence[Tensor], old: bool = False, **group: Any) -> dict[str, Any]:
    """A state dict as the official Adan's; `old` as until December 2022 and in the fairseq edition."""
    generator = torch.Generator().manual_seed(0)
    previous = "pre_grad" if old else "neg_pre_grad"
    names = ("exp_avg", "exp_avg_diff", previous, "exp_avg_sq")
    state = {
        i: {name: torch.randn(p.shape, generator=generator) for name in names} for i, p in enumerate(params)
    }
    for s in state.values():
        s["exp_avg_sq"].square_()
    hyper = dict(lr=0.015, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0.02, max_grad_norm=5.0)
    options = {**hyper, "no_prox": False, "foreach": True, "step": STEP, **group}
    return {"state": state, "param_groups": [{**options, "params": [*range(len(params))]}]}


def vit(**options: Any) -> nn.Module:
    """A ViT of DeiT-S's width and heads, otherwise small."""
    timm = __import__("timm")
    model: nn.Module = timm.create_model(
        "deit_small_patch16_224", **{"img_size": 32, "depth": 2, "num_classes": 5, **options}
    )
    return model


class Fixed(torch.optim.SGD):
    """An optimizer whose state dict is given."""

    def __init__(self, model: nn.Module, saved: dict[str, Any]) -> None:
        super().__init__(model.parameters(), lr=0.1)
        self.saved = saved

    def state_dict(self) -> dict[str, Any]:
        return self.saved


def timm_file(folder: Path, model: nn.Module, average: nn.Module | None = None, **more: Any) -> Path:
    """What timm's train.py leaves, written by its own saver; MAE's pre-training script uses it, too."""
    from timm.utils import CheckpointSaver, ModelEmaV2

    given = {"model": "deit_small_patch16_224", "lr": 0.015, "opt": "adan", "opt_betas": [0.98, 0.92, 0.99]}
    args = Namespace(**{**given, "batch_size": 256, "seed": 42, "log_interval": 50, **more})
    ema = None
    if average is not None:
        ema = ModelEmaV2(model, decay=0.0)
        ema.set(average)
    optimizer = Fixed(model, official(list(model.parameters())))
    saver = CheckpointSaver(model, optimizer, args, model_ema=ema, checkpoint_dir=str(folder))
    saver.save_checkpoint(299, metric=81.125)
    return folder / "last.pth.tar"


def mae_finetuned_file(folder: Path, model: nn.Module) -> Path:
    """What MAE's main_finetune.py leaves, in whose groups are the scales of layer-wise decay."""
    content = {
        "model": model.state_dict(),
        "optimizer": official(list(model.parameters()), lr_scale=0.65),
        "epoch": 90,
        "scaler": {"scale": 65536.0, "_growth_tracker": 12},
        "args": Namespace(
            model="vit_base_patch16", blr=0.0, lr=0.0015, layer_decay=0.65, output_dir=Path("out")
        ),
    }
    torch.save(content, folder / "checkpoint-90.pth")
    return folder / "checkpoint-90.pth"


def foreign_module(name: str, source: str) -> types.ModuleType:
    """A module from a string, as of a package that the reader does not have: see `forget`."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    return module


def forget(*names: str) -> None:
    """Remove modules, so that an import of them fails."""
    for name in names:
        del sys.modules[name]


def fairseq_file(folder: Path, weights: dict[str, Tensor], flat: bool = False, **cfg: Any) -> Path:
    """What fairseq's trainer leaves: settings with enumerations, meters, and the old form of Adan's state."""
    module = foreign_module(
        "absent_fairseq",
        "import enum, collections\n"
        "class Choice(enum.Enum):\n    complete = 'complete'\n"
        "class Meters(collections.OrderedDict):\n    pass\n"
        "class Meter:\n    pass\n",
    )
    settings = OmegaConf.create({"optimization": {"lr": [0.001], "clip_norm": 5.0}, "common": {"seed": 1}})
    settings = OmegaConf.merge(settings, {"model": {"_name": "roberta", **cfg}})
    meter = module.Meter()
    meter.sum = torch.tensor(3.5)
    params = [torch.zeros(sum(x.numel() for x in weights.values()))] if flat else list(weights.values())
    content = {
        "args": None,
        "cfg": settings,
        "model": weights,
        "criterion": None,
        "optimizer_history": [
            {"criterion_name": "C", "optimizer_name": "FP16Optimizer", "num_updates": 800000}
        ],
        "task_state": {"choice": module.Choice.complete},
        "extra_state": {
            "train_iterator": {"epoch": 16, "iterations_in_epoch": 3},
            "val_loss": np.float64(1.903),
            "metrics": module.Meters(train=[(0, "loss", meter)]),
        },
        "last_optimizer_state": {**official(params, old=True), "loss_scale": 32.0},
    }
    torch.save(content, folder / "checkpoint_best.pt")
    forget("absent_fairseq")
    return folder / "checkpoint_best.pt"


def nested(weights: dict[str, Tensor], stack: str) -> dict[str, Any]:
    """Megatron's nesting: dicts down to the embedding, and one flat dict for the layers."""
    start = "language_model."
    embedding = {
        kind: {"weight": weights[f"{start}embedding.{kind}.weight"]}
        for kind in ("word_embeddings", "position_embeddings")
        if f"{start}embedding.{kind}.weight" in weights
    }
    layers = {
        name.removeprefix(f"{start}{stack}."): x
        for name, x in weights.items()
        if name.startswith(f"{start}{stack}.")
    }
    copies = {name[:-7]: {"weight": x} for name, x in weights.items() if not name.startswith(start)}
    return {"language_model": {"embedding": embedding, stack: OrderedDict(layers)}, **copies}


def megatron_folder(
    folder: Path,
    ranks: dict[str, dict[str, Tensor]],
    version: float,
    stack: str = "encoder",
    name: str = "model_optim_rng.pt",
    **args: Any,
) -> Path:
    """What Megatron-LM leaves, a file for each of `ranks`; Adan's states are within its fp16 optimizer's."""
    module = foreign_module("absent_megatron", "import enum\nclass ModelType(enum.Enum):\n    encoder = 1\n")
    step = folder / "iter_0150000"
    for rank, weights in ranks.items():
        content = {
            "args": Namespace(
                **{"lr": 0.0025, "model_type": module.ModelType.encoder, "bf16": False, **args}
            ),
            "checkpoint_version": version,
            "iteration": 150000,
            "model": nested(weights, stack),
            "optimizer": {
                "optimizer": official(list(weights.values()), wd_mult=1.0, lr_mult=1.0),
                "grad_scaler": {"scale": 4096.0},
                "fp32_from_fp16_params": [[x.float() for x in weights.values()]],
            },
            "rng_state": [{"np_rng_state": np.random.get_state()}],  # noqa: NPY002 (as Megatron does)
        }
        (step / rank).mkdir(parents=True)
        torch.save(content, step / rank / name)
    (folder / "latest_checkpointed_iteration.txt").write_text("150000")
    forget("absent_megatron")
    return folder


TRANSFORMER_XL = """
import torch
from torch import nn

class AdaptiveEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb_layers = nn.ModuleList([nn.Embedding(11, 8), nn.Embedding(9, 8)])

class PositionwiseFF(nn.Module):
    def __init__(self):
        super().__init__()
        self.CoreNet = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 8))

class RelPartialLearnableMultiHeadAttn(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv_net = nn.Linear(8, 24, bias=False)
        self.layer_norm = nn.LayerNorm(8)

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.dec_attn = RelPartialLearnableMultiHeadAttn()
        self.pos_ff = PositionwiseFF()

class MemTransformerLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.n_layer, self.mem_len, self.same_length = 2, 150, False
        self.word_emb = AdaptiveEmbedding()
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.out = nn.Linear(8, 11)
        self.out.weight = self.word_emb.emb_layers[0].weight
        self.r_w_bias = nn.Parameter(torch.randn(2, 4))
        self.register_buffer("inv_freq", torch.ones(4))
"""


def transformer_xl_folder(folder: Path, legacy: bool = False) -> dict[str, Tensor]:
    """What Transformer-XL's train.py leaves: a whole module, of classes that are absent afterwards."""
    path = folder / "absent_txl.py"
    path.write_text(TRANSFORMER_XL)  # in a file, so that torch's old format stores its source, too
    sys.path.insert(0, str(folder))
    try:
        model = __import__("absent_txl").MemTransformerLM()
        weights = {name: x.detach().clone() for name, x in model.state_dict().items()}
        torch.save(model, folder / "model.pt", _use_new_zipfile_serialization=not legacy)
    finally:
        sys.path.remove(str(folder))
        forget("absent_txl")
        path.unlink()
    torch.save(official(list(model.parameters()), old=True), folder / "optimizer.pt")
    return weights
