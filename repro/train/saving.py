"""What a checkpoint holds beside its manifest, written and read.

    model.safetensors   the weights, and ema.safetensors the averaged ones
    training.pt         the optimizer's state, the loss scale, the last steps' losses, what tasks carry
    progress.json       where the run stands

With fsdp weights and optimizer are in files of torch.distributed.checkpoint instead, each process's part in
its own. A run goes on with another number of processes if the micro-batches of a step stay as many, and so
the same.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from safetensors.torch import load_model, save_model
from torch import nn

from repro.errors import UserError
from repro.train import checkpoint, fsdp

if TYPE_CHECKING:
    from repro.train.trainer import Trainer


def save(trainer: "Trainer") -> None:
    """Write a checkpoint and delete those no longer needed; every process calls it."""
    accelerator, config, folder = trainer.accelerator, trainer.config, trainer.folder.checkpoints
    held = [{key: tensor.cpu() for key, tensor in state.items()} for state in trainer.states]
    last = {key: ring.cpu() for key, ring in trainer.rings.items()}
    rings, states = zip(*gather_object([(last, held)]), strict=True)  # of all processes
    main = accelerator.is_main_process
    if not (main or config.fsdp):
        return

    def write(path: Path) -> None:
        about = {"model": trainer.task.model_name}
        state: dict[str, Any] = {
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
            "accumulate": config.accumulate,
            "rings": list(rings),
            "states": list(states),
        }
        if config.fsdp:
            fsdp.save(path, trainer.module, trainer.bare_optimizer)
        else:
            save_model(trainer.module, str(path / checkpoint.MODEL), about)
            state["optimizer"] = trainer.optimizer.state_dict()
        if not main:
            return
        if trainer.ema is not None:
            save_model(trainer.ema.module, str(path / checkpoint.EMA), about)
        torch.save(state, path / "training.pt")
        (path / "progress.json").write_text(json.dumps(asdict(trainer.progress), indent=1))

    best = trainer.progress.best and f"step-{trainer.progress.best['step']:09d}"
    parameters = sum(p.numel() for p in trainer.module.parameters())
    about = {"model": trainer.task.model_name, "parameters": parameters, "best": best}
    wait = accelerator.wait_for_everyone if config.fsdp else None
    checkpoint.save(folder, trainer.progress.step, write, about, main, wait)
    if main:
        checkpoint.prune(folder, config.run.keep, [best] if best else [])


def load(trainer: "Trainer", path: Path) -> dict[str, Any]:
    """Read a checkpoint into the trainer's parts and return its progress.json.

    Raises:
        UserError: it was written in steps of another number of micro-batches.
    """
    accelerator, config = trainer.accelerator, trainer.config
    state = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
    processes, rank = accelerator.num_processes, accelerator.process_index
    before, now = len(state["rings"]) * state["accumulate"], processes * config.accumulate
    if before != now:
        raise UserError(
            f"{trainer.folder.path} was begun with {len(state['rings'])} process(es) and accumulate="
            f"{state['accumulate']}, now there are {processes} and {config.accumulate}; their product has to "
            f"stay {before}: set accumulate, or begin afresh with run.overwrite=true"
        )
    if config.fsdp:
        fsdp.load(path, trainer.module, trainer.bare_optimizer)
    else:
        load_weights(trainer.module, path / checkpoint.MODEL, trainer.device)
        trainer.optimizer.load_state_dict(state["optimizer"])
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(state["scaler"])
    for key, ring in trainer.rings.items():
        all_rings = [one[key] for one in state["rings"]]
        same = len(all_rings) == processes  # or else what matters: their mean
        ring.copy_(all_rings[rank] if same else torch.stack(all_rings).mean(0))
    # micro-batches are numbered over all processes, see Trainer._seed
    by_number = [slots[slot] for slot in range(state["accumulate"]) for slots in state["states"]]
    trainer.states = [
        {key: tensor.to(trainer.device) for key, tensor in held.items()}
        for held in by_number[rank::processes]
    ]
    progress: dict[str, Any] = json.loads((path / "progress.json").read_text())
    if trainer.ema is not None:
        load_weights(trainer.ema.module, path / checkpoint.EMA, trainer.device)
        trainer.ema.n_averaged.fill_(progress["step"])
    return progress


def load_best(trainer: "Trainer", path: Path) -> nn.Module:
    """Read the weights that count, averaged ones if there are any; return the module that has them."""
    if trainer.config.fsdp:
        fsdp.load_weights(path, trainer.module)
        return trainer.module
    if trainer.ema is not None:
        load_weights(trainer.ema.module, path / checkpoint.EMA, trainer.device)
        module: nn.Module = trainer.ema.module
        return module
    load_weights(trainer.module, path / checkpoint.MODEL, trainer.device)
    return trainer.module


def load_weights(module: nn.Module, path: Path, device: torch.device) -> None:
    """Read a safetensors file into a module."""
    # accelerate numbers the CPU, too, which safetensors does not know
    load_model(module, path, device="cpu" if device.type == "cpu" else str(device))
