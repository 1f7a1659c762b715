"""FSDP2: shard parameters, gradients and optimizer states over the processes with torch's fully_shard.

A unit (a block of a transformer) is gathered only for its own forward and backward pass. Checkpoints are
those of torch.distributed.checkpoint: each process writes its shard, and any number of processes can read
them.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as read_shards
from torch.distributed.checkpoint.state_dict_saver import save as write_shards
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from repro.errors import UserError

METADATA = ".metadata"  # torch.distributed.checkpoint's table of contents


def shard(module: nn.Module, units: set[str], device: torch.device, amp: str, compile: bool) -> None:
    """Shard `module` in place over all processes; a single one keeps it whole.

    Gradients are reduced in float32 after each micro-batch, so no process keeps whole ones.

    Args:
        units: class names of the modules that are gathered one at a time.
        amp: no | bf16; with bf16, parameters are also sent in bf16.
        compile: compile each unit.

    Raises:
        UserError: the module has no such unit.
    """
    found = [child for child in module.modules() if type(child).__name__ in units]
    if not found:
        raise UserError(
            f"fsdp=true: {type(module).__name__} has none of the units {sorted(units)} to shard by"
        )
    if compile:
        for unit in found:
            unit.compile()
    if not dist.is_initialized():
        module.to(device)
        return
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if amp == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for part in [*reversed(found), module]:  # inner units first
        fully_shard(part, mesh=mesh, mp_policy=policy)
    # with this, generate of transformers lets processes with finished texts wait for the others
    module._is_fsdp_managed_module = True  # type: ignore[assignment]


def save(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write weights and optimizer state; every process calls this.

    Raises:
        RuntimeError: a process could not write its shard.
    """
    weights, states = get_state_dict(module, optimizer)
    content = {"model": weights, "optimizer": states}
    try:
        with _quiet():
            write_shards(content, checkpoint_id=folder, no_dist=not dist.is_initialized())
    except CheckpointException as error:  # not a subclass of Exception
        raise RuntimeError(str(next(iter(error.failures.values()))[0])) from error


def load(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read weights and optimizer state, in place; every process calls this."""
    weights, states = get_state_dict(module, optimizer)
    _read({"model": weights, "optimizer": states}, folder)
    set_state_dict(module, optimizer, model_state_dict=weights, optim_state_dict=states)


def load_weights(folder: Path, module: nn.Module) -> None:
    """Read the weights alone, in place; every process calls this."""
    weights = get_model_state_dict(module)
    _read({"model": weights}, folder)
    set_model_state_dict(module, weights)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all weights of a sharded checkpoint, gathered on the CPU."""
    listed = FileSystemReader(folder).read_metadata().state_dict_metadata
    weights = {
        name.removeprefix("model."): torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in listed.items()
        if name.startswith("model.") and isinstance(about, TensorStorageMetadata)
    }
    with _quiet():
        read_shards({"model": weights}, checkpoint_id=folder, no_dist=True)
    return weights


def _read(state: dict[str, Any], folder: Path) -> None:
    with _quiet():
        read_shards(state, checkpoint_id=folder, no_dist=not dist.is_initialized())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warning that there is a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
