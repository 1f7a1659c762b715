"""Tiny runs of real recipes, healthy and with a planted fault, for benchmarks/doctor.py.

A plant is a recipe with overrides of its command line, and at most one change to what the command line cannot
spoil: the data, a gradient, the data type of the weights, the loss scale.
"""

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from accelerate import Accelerator
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import Subset

from repro.errors import UserError
from repro.text.streams import Streams
from repro.train import accelerator, trainer
from repro.train.cli import CONFIGS
from repro.train.config import TrainConfig, typed
from repro.train.task import Task

# recipe: its module, its primary config, and what makes it take seconds
RECIPES = {
    "digits": (
        "vision.train",
        "vision",
        [
            *("epochs=8", "schedule.warmup_epochs=1", "optimizer.lr=8e-3"),
            *("model.kwargs.embed_dim=64", "model.kwargs.depth=2", "model.kwargs.num_heads=4"),
        ],
    ),
    "gpt2_mini": (
        "llm.pretrain",
        "llm",
        [
            *("steps=160", "schedule.warmup_steps=16", "eval_every=40", "eval_batches=4", "batch_size=8"),
            *("data=python_docs", "tokenizer=bytes", "data.sequence_length=64"),
            *("model.n_layer=2", "model.n_embd=64", "model.n_head=2"),
        ],
    ),
    "lstm": (
        "nlp.train_lstm",
        "lstm",
        [
            *("steps=200", "schedule.warmup_epochs=0", "schedule.warmup_steps=20"),
            *("eval_every=50", "eval_epochs=null", "schedule.min_lr=0"),
            *("tokenizer.vocab_size=1000", "model.emsize=64", "model.nhid=64"),
        ],
    ),
}
SHARED = ["run.log_every=5", "run.monitor=5", "run.overwrite=true"]
BLOCK = {"digits": "blocks.1.", "gpt2_mini": "transformer.h.1.", "lstm": "layers."}  # what gets no gradient
OVERFLOW = 2.0**28  # how much larger the fp16 gradients of the planted layer are, as of a sum without a mean
FEW = 64  # samples of a set that repeats
FEW_TOKENS = 20 * (35 * 2 + 1)  # of a text that repeats: two steps of the recipe

Change = Callable[[Task, str], None]  # to the task of a recipe


@dataclass(frozen=True)
class Plant:
    """A run to make: a recipe, what is set on its command line, and what is changed behind it."""

    recipe: str
    settings: tuple[str, ...] = ()
    cause: str | None = None  # None: healthy
    change: Change | None = None
    fp16: bool = False  # with a loss scale, of torch.amp.GradScaler, whatever the device

    @property
    def name(self) -> str:
        """A name that tells the settings, for a run folder and a table."""
        return " ".join([self.cause or "healthy", self.recipe, *self.settings])


def run(plant: Plant, seed: int, root: Path, name: str) -> Path:
    """Train, and return the folder of the run, also of one that diverged."""
    module, config_name, tiny = RECIPES[plant.recipe]
    recipe = importlib.import_module(module).RECIPE
    overrides = [*tiny, *SHARED, *plant.settings, f"seed={seed}", f"run.root={root}"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose(config_name, overrides)
    config = typed(cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True)), recipe.schema)
    task = recipe(config)
    vars(task).update(examples=lambda model: [], finish=lambda folder: None)  # longer than the training
    if plant.change is not None:
        plant.change(task, plant.recipe)
    scaled = mock.patch.object(trainer, "build", _with_loss_scale) if plant.fp16 else nullcontext()
    folder = root / str(task.name) / name
    with scaled:
        try:
            trainer.train(task, config, name)
        except UserError:
            if not (folder / "diverged.json").exists():
                raise
    return folder


def _with_loss_scale(config: TrainConfig) -> Accelerator:
    """Return an accelerator with a loss scale; accelerate itself gives one only to GPUs."""
    made = _build(config)
    made.scaler = torch.amp.GradScaler(
        made.device.type, init_scale=config.loss_scale.initial, growth_interval=40
    )
    return made


_build = accelerator.build


def without_gradients(task: Task, recipe: str) -> None:
    """Return no gradients to the parameters of a block, as a forgotten detach() does."""

    def spoil(name: str, p: nn.Parameter) -> None:
        if name.startswith(BLOCK[recipe]):
            p.register_hook(torch.zeros_like)

    _change_parameters(task, spoil)


def overflowing(task: Task, recipe: str) -> None:
    """Let the gradients of a block pass through fp16 far too large for it."""

    def spoil(name: str, p: nn.Parameter) -> None:
        if name.startswith(BLOCK[recipe]):
            p.register_hook(_through_half)

    _change_parameters(task, spoil)


def _through_half(gradient: Tensor) -> Tensor:
    return (gradient * OVERFLOW).half().to(gradient.dtype) / OVERFLOW


def _change_parameters(task: Task, spoil: Callable[[str, nn.Parameter], None]) -> None:
    build = task.build_model

    def spoiled() -> nn.Module:
        model = build()
        for name, p in model.named_parameters():
            spoil(name, p)
        return model

    vars(task)["build_model"] = spoiled


def in_bfloat16(task: Task, recipe: str) -> None:
    """Keep the weights in bfloat16; the optimizer rounds them to nearest."""
    build = task.build_model
    vars(task)["build_model"] = lambda: build().to(torch.bfloat16)


def with_few_samples(task: Task, recipe: str) -> None:
    """Leave only the first samples of the training set, which then repeat in each epoch."""
    data: Any = task.train_data()
    if isinstance(data, Streams):
        few: Any = Streams(data.ids[:FEW_TOKENS], data.streams, data.tgt_len)
    else:
        few = Subset(data, range(FEW))
    vars(task)["train_data"] = lambda: few


ADAMW: dict[str, tuple[str, ...]] = {
    "digits": ("optimizer=adamw", "optimizer.lr=4e-3"),
    "gpt2_mini": ("optimizer=adamw", "optimizer.lr=2e-3"),
    "lstm": ("optimizer=adamw", "optimizer.lr=4e-3"),
}


def _both(cause: str, *settings: str, recipes: tuple[str, ...] = tuple(RECIPES), **more: Any) -> list[Plant]:
    """Return a plant for each recipe with Adan and with AdamW."""
    optimizers: dict[str, dict[str, tuple[str, ...]]] = {
        "adan": dict.fromkeys(RECIPES, ()),
        "adamw": ADAMW,
    }
    return [
        Plant(recipe, (*start[recipe], *settings), cause, **more)
        for recipe in recipes
        for start in optimizers.values()
    ]


def _with(
    optimizer: str, cause: str, *settings: str, recipes: tuple[str, ...] = tuple(RECIPES)
) -> list[Plant]:
    return [
        plant
        for plant in _both(cause, *settings, recipes=recipes)
        if ("optimizer=adamw" in plant.settings) == (optimizer == "adamw")
    ]


FEW_STEPS = ("steps=300", "eval_epochs=null", "schedule.warmup_epochs=0", "schedule.warmup_steps=30")
NO_WARMUP = ("schedule.warmup_epochs=0", "schedule.warmup_steps=0")
WITH_NORMS = ("digits", "gpt2_mini")

PLANTS = [
    *_with("adan", "lr_too_high", "optimizer.lr=2"),
    *_with("adamw", "lr_too_high", "optimizer.lr=1"),
    *_with("adan", "warmup_too_short", *NO_WARMUP, "optimizer.lr=0.04"),
    *_with("adamw", "warmup_too_short", *NO_WARMUP, "optimizer.lr=0.02"),
    *_both("noise_bound_batch", "batch_size=1", *FEW_STEPS, recipes=("digits",)),
    *_both("noise_bound_batch", "batch_size=1", "data.sequence_length=8", recipes=("gpt2_mini",)),
    *_both("noise_bound_batch", "batch_size=1", "data.tgt_len=5", recipes=("lstm",)),
    *_with("adan", "betas_too_long", "optimizer.betas=[0.9995,0.92,0.99]"),
    *_with("adamw", "betas_too_long", "optimizer.betas=[0.999,0.999]"),
    *_both("clipping_always_on", "clip_grad=0.003"),
    *_both("eps_dominated", "optimizer.eps=0.05"),
    *_both("bf16_stall", "amp=bf16", "optimizer.lr=3e-5", recipes=WITH_NORMS, change=in_bfloat16),
    *_with("adan", "paper_betas", "optimizer.betas=[0.02,0.08,0.01]"),
    *_with("adamw", "paper_betas", "optimizer.betas=[0.1,0.001]"),
    *_both(
        "decay_on_norms",
        *("optimizer.decay_bias_and_norm=true", "optimizer.weight_decay=4"),
        recipes=WITH_NORMS,
    ),
    *_both("dead_gradients", change=without_gradients),
    *_both("loss_scale_collapse", "clip_grad=null", change=overflowing, fp16=True),
    *_both(
        "data_repeats",
        *("epochs=150", "eval_epochs=10", "schedule.warmup_epochs=15", "augment=none"),
        recipes=("digits",),
        change=with_few_samples,
    ),
    *_both("data_repeats", "steps=400", recipes=("gpt2_mini", "lstm"), change=with_few_samples),
]


def _healthy(optimizer: str, digits: float, gpt2: float, lstm: float) -> list[Plant]:
    """Return the recipes with an optimizer, at these learning rates."""
    rates = {"digits": digits, "gpt2_mini": gpt2, "lstm": lstm}
    return [Plant(recipe, (f"optimizer={optimizer}", f"optimizer.lr={lr:g}")) for recipe, lr in rates.items()]


HEALTHY = [
    *_healthy("adan", 8e-3, 4e-3, 8e-3),
    *_healthy("adamw", 4e-3, 2e-3, 4e-3),
    *_healthy("nadamw", 4e-3, 2e-3, 4e-3),
    *_healthy("lion", 5e-4, 3e-4, 5e-4),
    *_healthy("adabelief", 4e-3, 2e-3, 4e-3),
    *_healthy("lamb", 1e-2, 1e-2, 1e-2),
    *_healthy("adam_mini", 4e-3, 2e-3, 4e-3),
    *_healthy("mars", 4e-3, 2e-3, 4e-3),
    *_healthy("schedule_free_adan", 8e-3, 4e-3, 8e-3),
    *(Plant(recipe, (*ADAMW[recipe], "clip_grad=null")) for recipe in RECIPES),
    *(Plant(recipe, ("clip_grad=1", "optimizer.weight_decay=0.2")) for recipe in RECIPES),
    *(Plant(recipe, ("clip_grad=null", "loss_scale.initial=1024"), fp16=True) for recipe in RECIPES),
    *(
        Plant(recipe, ("amp=bf16", "optimizer.param_rounding=kahan"), change=in_bfloat16)
        for recipe in WITH_NORMS
    ),
    *(Plant(recipe, ("optimizer.decay_bias_and_norm=true",)) for recipe in RECIPES),
    *(Plant(recipe, (*NO_WARMUP, "optimizer.lr=1e-3")) for recipe in RECIPES),
]
