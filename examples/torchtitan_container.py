"""torchtitan: a subclass of its container knows our optimizers; groups stay torchtitan's patterns.

torchrun --nproc-per-node 2 examples/torchtitan_container.py
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from task import ARGS, OPTIONS, batch, loss, network, report
from torch.distributed.fsdp import fully_shard
from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig

import adan_optim


class Container(OptimizersContainer):
    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        pass

    @staticmethod
    def _resolve_optimizer_factory(name: str) -> Callable[..., torch.optim.Optimizer]:
        return adan_optim.OPTIMIZERS[name]

    @staticmethod
    def _build_impl_kwargs(config: OptimizersContainer.Config) -> dict[str, Any]:
        return {}  # each tensor takes the fastest path that works


# In a config of torchtitan: optimizer=Container.Config(...)
no_decay = {"lr": OPTIONS["lr"], "weight_decay": 0.0}
decay = {"lr": OPTIONS["lr"], "weight_decay": OPTIONS["weight_decay"]}
config = Container.Config(
    param_groups=[
        ParamGroupConfig(pattern=r"bias$|^1\.", optimizer_name=ARGS.optimizer, optimizer_kwargs=no_decay),
        ParamGroupConfig(pattern=r".*", optimizer_name=ARGS.optimizer, optimizer_kwargs=decay),
    ],
    optimizer_factory_kwargs_by_name={ARGS.optimizer: {"max_grad_norm": OPTIONS["max_grad_norm"]}},
)
dist.init_process_group("gloo")
model = fully_shard(network(), mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
optimizers = config.build(model_parts=[model])
for step in range(ARGS.steps):
    optimizers.zero_grad()
    loss(model, *batch(step)).backward()
    optimizers.step()
report(model)
dist.destroy_process_group()
