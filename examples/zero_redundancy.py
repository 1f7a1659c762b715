"""ZeroRedundancyOptimizer (ZeRO-1): each process keeps the states of its share of the parameters.

torchrun --nproc-per-node 2 examples/zero_redundancy.py
"""

from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

import adan_optim

torch.manual_seed(0)
layers = nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 5), nn.GELU(), nn.Linear(5, 1)
model = nn.Sequential(*layers).double()


def batch(step):
    """Return inputs [8, 6] and targets [8, 1]."""
    x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return x, x.sin().sum(dim=1, keepdim=True)


dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
parallel = DistributedDataParallel(model)
groups = adan_optim.param_groups(model, lr=0.01, weight_decay=0.1)
# Each process has some of the parameters, and clips by the norm of all.
ours = partial(adan_optim.Adan, process_group="world")
optimizer = ZeroRedundancyOptimizer(groups, optimizer_class=ours, max_grad_norm=0.5)
for step in range(8):
    x, y = (rows[rank::world] for rows in batch(step))
    optimizer.zero_grad()
    mse_loss(parallel(x), y).backward()
    optimizer.step()
optimizer.consolidate_state_dict(to=0)  # before optimizer.state_dict() on process 0: gathers all states

x, y = batch(1000)
loss = mse_loss(model(x), y).item()
if rank == 0:
    print(f"loss {loss:.9f}")
dist.destroy_process_group()
