"""FSDP2: parameters, gradients and optimizer states are spread over the processes, by torch's fully_shard.

A unit (a block of a transformer) is put together for its own forward and backward pass alone. Checkpoints are
torch.distributed.checkpoint's: each process writes its part, and any number of processes reads them.
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

    Gradients are averaged over the processes in float32 after each micro-batch, so that none is kept whole.

    Args:
        units: names of the classes of the modules that are put together one at a time.
        amp: no | bf16; in bf16 the parameters are also sent as such.
        compile: compile each unit.

    Raises:
        UserError: the module has no such units.
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
    for part in [*reversed(found), module]:  # units inside of units first
        fully_shard(part, mesh=mesh, mp_policy=policy)
    # transformers' generate asks for this: processes whose texts have ended wait for the others'
    module._is_fsdp_managed_module = True  # type: ignore[assignment]


def save(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write weights and state; every process calls it.

    Raises:
        RuntimeError: a process could not write its part.
    """
    weights, states = get_state_dict(module, optimizer)
    content = {"model": weights, "optimizer": states}
    try:
        with _quiet():
            write_shards(content, checkpoint_id=folder, no_dist=not dist.is_initialized())
    except CheckpointException as error:  # which is no Exception
        raise RuntimeError(str(next(iter(error.failures.values()))[0])) from error


def load(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read weights and state back, in place; every process calls it."""
    weights, states = get_state_dict(module, optimizer)
    _read({"model": weights, "optimizer": states}, folder)
    set_state_dict(module, optimizer, model_state_dict=weights, optim_state_dict=states)


def load_weights(folder: Path, module: nn.Module) -> None:
    """Read the weights alone back, in place; every process calls it."""
    weights = get_model_state_dict(module)
    _read({"model": weights}, folder)
    set_model_state_dict(module, weights)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all weights of a sharded checkpoint, whole and on the CPU."""
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
    """Pass over the warning that a process is alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
