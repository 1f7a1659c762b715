"""The models that training.py trains, each with its recipe and the recipe's own embedded data.

A case is data: a recipe's task, the words of its command line, and the forward pass and loss as one would
write them for a loop of a few lines.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from benchmarks.training_loops import Batch, Bench, Loss
from nlp import train_lstm, train_transformer_xl
from nlp.bert import attention
from nlp.pretrain_bert import Pretraining
from nlp.transformer_xl import empty_memory
from repro.errors import UserError
from repro.train.config import TrainConfig
from repro.train.data import keyed, make_loader
from repro.train.seeding import seed_generators
from repro.train.task import Task
from vision.train import Classification

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
AMP = {"cpu": "no", "cuda": "bf16"}
BATCHES = 4  # made before the clock starts, and used in turn
SHARED = [  # only steps, all alike
    "epochs=1",
    "optimizer=adan",
    "optimizer.lr=1e-4",
    "optimizer.fused=true",
    "schedule=cosine",  # from lr to lr
    "schedule.per=step",
    "schedule.min_lr=1e-4",
    "schedule.warmup_epochs=0",
    "schedule.warmup_steps=null",
    "steps=null",
    "eval_every=null",
    "clip_grad=null",
]


@dataclass(frozen=True)
class Case:
    """A recipe and its settings."""

    task: Callable[[Any], Task]  # takes the configuration
    config: str  # configs/<config>.yaml
    loss: Callable[[Any], Loss]  # takes the configuration; one per contestant, as it may keep a memory
    overrides: list[str]
    sizes: dict[str, list[str]]  # overrides by device, and for tests (quick)


def image_loss(config: Any) -> Loss:
    """Return normalisation and cross entropy, of images [batch, channels, size, size] and labels [batch]."""
    layout = torch.channels_last if config.channels_last else torch.contiguous_format

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        images, labels = batch
        pixels = images.to(torch.float32, memory_format=layout).div_(255).sub_(0.5).div_(0.5)
        return F.cross_entropy(model(pixels), labels)

    return loss


def masked_loss(config: Any) -> Loss:
    """Return the cross entropy of the hidden tokens; see nlp.pretrain_bert for the batch."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        ids, seen, places, targets = batch
        scores, _ = model(ids, attention(seen), places)
        return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=-100)

    return loss


def transformer_xl_loss(config: Any) -> Loss:
    """Return the adaptive softmax with a memory of earlier segments, of words and targets [batch, length]."""
    memory = None

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal memory
        words, targets = batch
        memory = memory or empty_memory(config.model, len(words), words.device, config.model.mem_len)
        losses, memory = model(words, targets, memory)
        return losses.mean()

    return loss


def lstm_loss(config: Any) -> Loss:
    """Return the cross entropy from the previous segment's states, of words and targets [batch, length]."""
    hidden = None

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal hidden
        ids, targets = batch
        output = model(ids, hidden)
        hidden = [(h.detach(), c.detach()) for h, c in output.hidden]
        return F.cross_entropy(output.logits.flatten(0, 1), targets.flatten())

    return loss


def image_case(model: str) -> Case:
    """Return the case of a classifier of timm, on enlarged digits.

    Raises:
        UserError: there is no such model.
    """
    if not timm.is_model(model):
        raise UserError(f"--models {model}: is none of {', '.join(LANGUAGE)}, and timm has no such model")
    published = timm.get_pretrained_cfg(model)
    assert published is not None
    size = published.input_size[-1]
    overrides = ["model=resnet50", f"model.name={model}", "augment=none", f"data.size={size}"]
    overrides += ["data.channels=3", "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]"]
    sizes = {"cpu": ["batch_size=8"], "cuda": ["batch_size=256"], "quick": ["batch_size=2"]}
    return Case(Classification, "vision", image_loss, overrides, sizes)


LANGUAGE = {
    "roberta": Case(
        Pretraining,
        "bert",
        masked_loss,
        ["model.hidden_dropout_prob=0", "model.attention_probs_dropout_prob=0", "tokenizer.vocab_size=8000"],
        {
            "cpu": ["model.hidden_size=256", "model.num_hidden_layers=4", "batch_size=16"],
            "cuda": ["model=roberta_base", "data.block_size=512", "batch_size=32"],
            "quick": ["data.block_size=16", "batch_size=2"],
        },
    ),
    "transformer_xl": Case(
        train_transformer_xl.LanguageModelling,
        "transformer_xl",
        transformer_xl_loss,
        ["model.dropout=0"],
        {
            "cpu": ["batch_size=16"],
            "cuda": [
                "model=transformer_xl_base",
                "model.cutoffs=[1000,4000,10000]",  # a tenth of the words, or less
                "tgt_len=150",
                "batch_size=60",
            ],
            "quick": ["tgt_len=8", "model.mem_len=8", "batch_size=2"],
        },
    ),
    "lstm": Case(
        train_lstm.LanguageModelling,
        "lstm",
        lstm_loss,
        [
            f"model.{key}=0"
            for key in ["dropout", "dropouth", "dropouti", "dropoute", "wdrop", "alpha", "beta"]
        ],
        {
            "cpu": ["model.emsize=256", "model.nhid=512", "model.nlayers=2", "batch_size=20"],
            "cuda": ["model=lstm_3", "data.tgt_len=70", "batch_size=80"],
            "quick": ["data.tgt_len=8", "batch_size=2"],
        },
    ),
}
MODELS = ["deit_small_patch16_224", "resnet50", *LANGUAGE]  # the first is ViT-S/16 as in the paper's rows
QUICK = ["test_vit", "test_resnet", *LANGUAGE]  # timm's smallest


def prepare(name: str, device: str, quick: bool, rounds: int, more: Sequence[str] = ()) -> Bench:
    """Return a model in training, with further overrides.

    Raises:
        UserError: there is no such model, or its recipe refuses the configuration.
    """
    case = LANGUAGE[name] if name in LANGUAGE else image_case(name)
    size = case.sizes["quick" if quick else device]
    overrides = [*SHARED, f"amp={AMP[device]}", *case.overrides, *size, *more]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = cast(TrainConfig, OmegaConf.to_object(compose(case.config, overrides)))
    config.check()
    task = case.task(config)
    seed_generators(name)
    model = task.build_model().to(device)
    data = task.train_data()
    steps = task.plan(data, config)(0)[:BATCHES]
    batches = list(make_loader(data, keyed(steps), config.seed, workers=0, collate=task.collate))
    return Bench(name, device, rounds, task, config, model, batches, lambda: case.loss(config))
