"""`adan_optim.transfer` on the model and the data of a recipe."""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from accelerate import Accelerator
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import adan_optim
from repro.errors import UserError
from repro.ledger.rows import ROOT, compose_config
from repro.train import like as likes
from repro.train.accelerator import build, shut_down
from repro.train.config import TrainConfig, typed
from repro.train.data import Sized, TrainingSampler, make_loader
from repro.train.seeding import seed_generators
from repro.train.task import Task

PILOT = 400  # steps, but at most a quarter of the run
SHARE = 0.25


def measure(
    task: Task,
    config: TrainConfig,
    accelerator: Accelerator,
    data: Sized,
    module: nn.Module,
    like: dict[str, Any],
    to: str | dict[str, Any],
    steps: int,
    pilot: int | None = None,
    samples: int = 32,
) -> adan_optim.Transfer:
    """Return what adan_optim.transfer finds on a recipe's model and training data.

    Args:
        module: the model, sharded with fsdp=true; it is moved to the device.
        like: settings of the optimizer to come from.
        to: name of the optimizer to move to, or its name and betas.
        steps: of the run.
        pilot: None: PILOT, or SHARE of the run.

    Raises:
        UserError: one of the two has no closed form, or a loss is not finite.
    """
    ranks = accelerator.num_processes, accelerator.process_index
    parts = config.gradient_accumulation_steps
    sampler = TrainingSampler(task.plan(data, config), parts, *ranks)
    loader = make_loader(data, sampler, config.seed, config.workers, config.repeats, task.collate)

    def batches() -> Iterator[Any]:
        number = 0
        for epoch in range(2**31):
            sampler.start_at(epoch)
            for batch in loader:
                seed_generators(f"transfer {config.seed} {number} {accelerator.process_index}")
                number += 1
                yield task.move(batch, accelerator.device)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        task.state = {}
        with accelerator.autocast():
            return task.loss(model, batch)

    module.to(accelerator.device).train()
    model = DistributedDataParallel(module) if ranks[0] > 1 and not config.fsdp else module
    try:
        return adan_optim.transfer(
            model,
            batches(),
            loss,
            like,
            to,
            steps=steps,
            pilot=max(2, min(PILOT, int(SHARE * steps))) if pilot is None else pilot,
            samples=samples,
            micro_batches=parts,
            clip_grad=config.clip_grad,
            warmup=config.schedule.warmup_steps or 0,
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"optimizer.lr=like:{like['name']}: {error}") from error


def predict(
    recipe: str,
    words: Sequence[str],
    name: str,
    given: dict[str, float | None],
    to: str | dict[str, Any],
    pilot: int | None,
    samples: int,
) -> adan_optim.Transfer:
    """Return what adan_optim.transfer finds on a recipe, configured as on its command line.

    Args:
        name: of the optimizer to come from, with the learning rate and weight decay of `given`; where these
        are
            None, those of configs/optimizer.

    Raises:
        UserError: there is no such recipe or optimizer, or its configuration is wrong.
    """
    if not (ROOT / recipe).is_file():
        raise UserError(f"{recipe}: there is no such script; give a recipe's, as llm/pretrain.py")
    make = getattr(importlib.import_module(recipe.removesuffix(".py").replace("/", ".")), "RECIPE", None)
    if make is None:
        raise UserError(f"{recipe}: is not a recipe that trains a model")
    values = OmegaConf.to_container(compose_config(make.name, words), resolve=True)
    config: TrainConfig = typed(cast(dict[str, Any], values), make.schema)
    config.check()
    source = likes.asked({"lr": f"like:{name}"})
    assert source is not None
    source |= {key: value for key, value in given.items() if value is not None}
    task: Task = make(config)
    accelerator = build(config)
    try:
        torch.manual_seed(config.seed)
        data = task.train_data()
        steps = config.total_steps(len(task.plan(data, config)(0)))
        model = task.build_model()
        return measure(task, config, accelerator, data, model, source, to, steps, pilot, samples)
    finally:
        shut_down(accelerator)
