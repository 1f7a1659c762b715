"""DistributedDataParallel: every process holds everything; gradients are averaged.

torchrun --nproc-per-node 2 examples/ddp.py
"""

import torch
import torch.distributed as dist
from torch import nn
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
optimizer = adan_optim.build_optimizer(model, "adan", lr=0.01, weight_decay=0.1, max_grad_norm=0.5)
for step in range(8):
    x, y = (rows[rank::world] for rows in batch(step))
    optimizer.zero_grad()
    mse_loss(parallel(x), y).backward()
    optimizer.step()

x, y = batch(1000)
loss = mse_loss(model(x), y).item()
if rank == 0:
    print(f"loss {loss:.9f}")
dist.destroy_process_group()
