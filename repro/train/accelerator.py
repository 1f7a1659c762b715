"""Set-up of what comes from libraries: accelerate's devices, precision and trackers, and the optimizer."""

import atexit
import warnings
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.state import AcceleratorState, GradientState  # type: ignore[import-untyped]
from accelerate.utils import GradScalerKwargs, InitProcessGroupKwargs  # type: ignore[import-untyped]
from torch import nn

import optim
from repro.errors import UserError
from repro.train.config import TrainConfig
from repro.train.run_folder import flatten


def build(config: TrainConfig) -> Accelerator:
    """Return the accelerator that `config` asks for, on the devices that are there.

    Raises:
        UserError: the mixed precision does not work on them.
    """
    handlers: list[Any] = [InitProcessGroupKwargs(timeout=timedelta(seconds=config.run.timeout))]
    if config.amp == "fp16":
        scale = config.loss_scale
        handlers.append(GradScalerKwargs(init_scale=scale.initial, growth_interval=scale.window))
    if config.compile:  # torch's compiler asks each tensor that it is given for its gradient
        warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf", UserWarning)
    try:
        return Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision=config.amp,
            gradient_accumulation_steps=config.accumulate,
            dynamo_backend="inductor" if config.compile else None,
            kwargs_handlers=handlers,
            log_with=config.tracking.name,
            project_dir=config.run.root,
        )
    except ValueError as error:
        raise UserError(f"amp={config.amp} does not work here: {error}") from error


def build_optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """Return the optimizer that `config` asks for.

    Raises:
        UserError: it names no optimizer, or one of its options makes no sense.
    """
    try:
        return optim.build_optimizer(model, config)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        apex = str(config["name"]).startswith("apex.")
        if isinstance(error, RuntimeError) and not apex:
            raise
        cure = "; the CUDA images have it if built with APEX=COMMIT, see docs/docker.md" if apex else ""
        raise UserError(f"optimizer={config['name']}: {error}{cure}") from error


def start_trackers(accelerator: Accelerator, config: TrainConfig, path: Path) -> None:
    """Start the tracker that `config` asks for, if any, for the run in folder `path`."""
    tracking = config.tracking
    if tracking.name == "wandb":
        options = {"wandb": {"name": path.name, "mode": tracking.mode, "dir": str(path)}}
        accelerator.init_trackers(tracking.project, flatten(asdict(config)), options)
    elif tracking.name == "tensorboard":
        accelerator.project_configuration.logging_dir = str(path)
        accelerator.init_trackers("tensorboard")


def shut_down(accelerator: Accelerator) -> None:
    """Finish the trackers and leave nothing that a next accelerator of this process would inherit.

    But for the process group: torchrun lets its processes form one once, and multiruns go on with it.
    """
    for tracker in accelerator.trackers:
        tracker.finish()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@atexit.register
def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
