"""Write and read the contents of a checkpoint, in addition to its manifest.

    model.safetensors   the weights, and ema.safetensors the averaged ones
    training.pt         the optimizer's state, the loss scale, the last losses, the state of the task
    progress.json       the progress of the run

With fsdp, weights and optimizer are in files of torch.distributed.checkpoint instead, one per process. A run
can continue with another number of processes if a step keeps its number of micro-batches.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_model, save_model
from torch import nn

from repro.errors import UserError
from repro.train import checkpoint, fsdp
from repro.train.config import TrainConfig
from repro.train.state import Progress, TrainState


def save(state: TrainState, config: TrainConfig, accelerator: Accelerator, folder: Path, name: str) -> None:
    """Write a checkpoint and delete those no longer needed; every process calls this.

    Args:
        folder: the folder of the run's checkpoints.
        name: the name of the model.
    """
    held = [{key: tensor.cpu() for key, tensor in each.items()} for each in state.carried]
    last = {key: numbers.cpu() for key, numbers in state.history.items()}
    histories, carried = zip(*gather_object([(last, held)]), strict=True)  # of all processes
    main = accelerator.is_main_process
    if not (main or config.fsdp):
        return

    def write(path: Path) -> None:
        about = {"model": name}
        rest: dict[str, Any] = {
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
            "accumulate": config.gradient_accumulation_steps,
            "rings": list(histories),
            "states": list(carried),
        }
        if config.fsdp:
            fsdp.save(path, state.module, state.optimizer)
        else:
            save_model(state.module, str(path / checkpoint.MODEL), about)
            rest["optimizer"] = state.optimizer.state_dict()
        if not main:
            return
        if state.ema is not None:
            save_model(state.ema.module, str(path / checkpoint.EMA), about)
        torch.save(rest, path / "training.pt")
        (path / "progress.json").write_text(json.dumps(asdict(state.progress), indent=1))

    best = state.progress.best and f"step-{state.progress.best['step']:09d}"
    about = {"model": name, "parameters": state.parameters, "best": best}
    wait = accelerator.wait_for_everyone if config.fsdp else None
    checkpoint.save(folder, state.progress.step, write, about, main, wait)
    if main:
        checkpoint.prune(folder, config.run.keep, [best] if best else [])


def load(state: TrainState, config: TrainConfig, accelerator: Accelerator, path: Path) -> None:
    """Read a checkpoint into a new state.

    Raises:
        UserError: its steps have another number of micro-batches.
    """
    device = accelerator.device
    rest = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
    processes, rank = accelerator.num_processes, accelerator.process_index
    before, now = len(rest["rings"]) * rest["accumulate"], processes * config.gradient_accumulation_steps
    if before != now:
        raise UserError(
            f"{path.parents[1]} was begun with {len(rest['rings'])} process(es) and "
            f"gradient_accumulation_steps={rest['accumulate']}, now there are {processes} and "
            f"{config.gradient_accumulation_steps}; their product must stay {before}: "
            "set gradient_accumulation_steps, or start over with run.overwrite=true"
        )
    if config.fsdp:
        fsdp.load(path, state.module, state.optimizer)
    else:
        load_weights(state.module, path / checkpoint.MODEL, device)
        state.optimizer.load_state_dict(rest["optimizer"])
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(rest["scaler"])
    for key, numbers in state.history.items():
        every = [one[key] for one in rest["rings"]]
        same = len(every) == processes  # else use the mean, which is all that counts
        numbers.copy_(every[rank] if same else torch.stack(every).mean(0))
    # micro-batches are numbered over all processes, see Trainer._seed
    by_number = [slots[slot] for slot in range(rest["accumulate"]) for slots in rest["states"]]
    state.carried = [
        {key: tensor.to(device) for key, tensor in held.items()} for held in by_number[rank::processes]
    ]
    state.progress = Progress(**json.loads((path / "progress.json").read_text()))
    if state.ema is not None:
        load_weights(state.ema.module, path / checkpoint.EMA, device)
        state.ema.n_averaged.fill_(state.progress.step)


def load_best(state: TrainState, config: TrainConfig, path: Path, device: torch.device) -> nn.Module:
    """Read the best weights, averaged ones if there are any, and return the module with them.

    Raises:
        UserError: the checkpoint `path` is damaged.
    """
    if (problem := checkpoint.damage(path)) is not None:
        raise UserError(
            f"the best checkpoint {path} is damaged ({problem}), which the run's end needs: "
            "restore it from a copy, or start over with run.overwrite=true"
        )
    if config.fsdp:
        fsdp.load_weights(path, state.module)
        return state.module
    module: nn.Module = state.module if state.ema is None else state.ema.module
    load_weights(module, path / (checkpoint.MODEL if state.ema is None else checkpoint.EMA), device)
    return module


def load_weights(module: nn.Module, path: Path, device: torch.device) -> None:
    """Read a safetensors file into a module."""
    # accelerate gives the CPU an index, which safetensors does not accept
    load_model(module, path, device="cpu" if device.type == "cpu" else str(device))
