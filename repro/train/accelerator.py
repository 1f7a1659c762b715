"""Set up accelerate (devices, precision, trackers) and the optimizer."""

import atexit
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradScalerKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

import adan_optim
from repro.errors import UserError
from repro.runs import flatten
from repro.train.config import LossScaleConfig, TrainConfig
from repro.train.state import TrainState


def build(config: TrainConfig) -> Accelerator:
    """Return the accelerator of a configuration, on the available devices.

    Raises:
        UserError: the mixed precision does not work on them.
    """
    handlers: list[Any] = [InitProcessGroupKwargs(timeout=timedelta(seconds=config.run.timeout))]
    if config.amp == "fp16":
        scale = config.loss_scale
        handlers.append(GradScalerKwargs(init_scale=scale.initial, growth_interval=scale.growth_interval))
    if config.compile:  # torch's compiler reads the gradient of each input
        warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf", UserWarning)
    try:
        return Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision=config.amp,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            dynamo_backend="inductor" if config.compile else None,
            kwargs_handlers=handlers,
            log_with=config.tracking.name,
            project_dir=config.run.root,
        )
    except ValueError as error:
        raise UserError(f"amp={config.amp} does not work here: {error}") from error


def build_optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """Return the optimizer of a configuration.

    Raises:
        UserError: the optimizer is unknown or not installed, or an option is invalid.
    """
    try:
        return adan_optim.build_optimizer(model, config)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        apex = str(config["name"]).startswith("apex.")
        if isinstance(error, RuntimeError) and not apex:
            raise
        cure = "; the CUDA images have it if built with APEX=COMMIT, see docs/docker.md" if apex else ""
        raise UserError(f"optimizer={config['name']}: {error}{cure}") from error


def build_monitor(
    state: TrainState, config: TrainConfig, path: Path, accelerator: Accelerator
) -> adan_optim.Monitor | None:
    """Return a monitor that writes to the run folder `path`, or None if the configuration has none.

    Raises:
        UserError: the file of samples is damaged.
    """
    if config.run.monitor is None:
        return None
    try:
        return adan_optim.Monitor(
            state.optimizer,
            state.module,
            every=config.run.monitor,
            path=path / "monitor.jsonl" if accelerator.is_main_process else None,
            step=state.progress.step,
            max_grad_norm=config.clip_grad,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def keep_loss_scale(accelerator: Accelerator, config: LossScaleConfig, step: int) -> None:
    """Keep the loss scale of fp16 above its threshold, and end the run at its minimum.

    Raises:
        UserError: the scale has fallen to its minimum, because gradients keep overflowing.
    """
    scaler = accelerator.scaler
    if scaler is None or not (config.threshold or config.minimum):
        return
    scale = scaler.get_scale()
    if config.threshold is not None and scale < config.threshold:
        scaler.update(config.threshold)
    elif scale <= config.minimum:
        raise UserError(
            f"amp=fp16: at step {step} gradients overflow with losses times {scale:g}: "
            "try amp=bf16 or a lower optimizer.lr"
        )


def weighed(
    batches: Iterable[Any],
    num_items: Callable[[Any], float | None],
    micro_batches: int,
    accelerator: Accelerator,
) -> Iterator[tuple[Any, Tensor | float]]:
    """Yield micro-batches with their weights in the loss of a step (scalars): 1 if `num_items` returns None.

    Args:
        num_items: see Task.num_items.
        micro_batches: number in a step.
    """
    iterator = iter(batches)
    for first in iterator:
        items = num_items(first)
        if items is None:
            yield first, 1.0
            continue
        rest = list(islice(iterator, micro_batches - 1))
        numbers = [items, *(num_items(batch) or 0.0 for batch in rest)]
        mean = max(sum(numbers) / len(numbers), 1e-9)  # 0: nothing to learn
        weights: Iterable[Tensor | float] = [number / mean for number in numbers]
        if accelerator.num_processes > 1:  # only then is the device needed, and waited for
            means = torch.tensor(mean, device=accelerator.device)
            weights = torch.tensor(numbers, device=accelerator.device) / accelerator.reduce(means, "mean")
        yield from zip([first, *rest], weights, strict=True)


def start_trackers(accelerator: Accelerator, config: TrainConfig, path: Path) -> None:
    """Start the tracker of the configuration, if any, for the run in folder `path`."""
    tracking = config.tracking
    if tracking.name == "wandb":
        options = {"wandb": {"name": path.name, "mode": tracking.mode, "dir": str(path)}}
        accelerator.init_trackers(tracking.project, flatten(asdict(config)), options)
    elif tracking.name == "tensorboard":
        accelerator.project_configuration.logging_dir = str(path)
        accelerator.init_trackers("tensorboard")


def shut_down(accelerator: Accelerator) -> None:
    """Finish the trackers and reset the state that the next accelerator of this process would inherit.

    The process group stays, as processes of torchrun can form only one, which multiruns reuse.
    """
    for tracker in accelerator.trackers:
        tracker.finish()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@atexit.register
def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
