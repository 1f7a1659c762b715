"""torchtitan: a subclass of its container knows our optimizers; groups stay torchtitan's patterns.

torchrun --nproc-per-node 2 examples/torchtitan_container.py
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import mse_loss
from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig

import adan_optim

torch.manual_seed(0)
layers = nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 5), nn.GELU(), nn.Linear(5, 1)
model = nn.Sequential(*layers).double()


def batch(step):
    """Return inputs [8, 6] and targets [8, 1]."""
    x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return x, x.sin().sum(dim=1, keepdim=True)


class Container(OptimizersContainer):
    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        pass

    @staticmethod
    def _resolve_optimizer_factory(name):
        return adan_optim.OPTIMIZERS[name]

    @staticmethod
    def _build_impl_kwargs(config):
        return {}  # each tensor takes the fastest path that works


no_decay, decay = {"lr": 0.01, "weight_decay": 0.0}, {"lr": 0.01, "weight_decay": 0.1}
config = Container.Config(  # in a config of torchtitan: optimizer=Container.Config(...)
    param_groups=[
        ParamGroupConfig(pattern=r"bias$|^1\.", optimizer_name="adan", optimizer_kwargs=no_decay),
        ParamGroupConfig(pattern=r".*", optimizer_name="adan", optimizer_kwargs=decay),
    ],
    optimizer_factory_kwargs_by_name={"adan": {"max_grad_norm": 0.5}},
)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
fully_shard(model, mesh=dist.init_device_mesh("cpu", (world,)))
optimizers = config.build(model_parts=[model])
for step in range(8):
    x, y = (rows[rank::world] for rows in batch(step))
    optimizers.zero_grad()
    mse_loss(model(x), y).backward()
    optimizers.step()

x, y = batch(1000)
loss = mse_loss(model(x), y).item()
if rank == 0:
    print(f"loss {loss:.9f}")
dist.destroy_process_group()
