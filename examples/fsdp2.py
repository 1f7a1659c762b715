"""FSDP2: parameters, gradients and states are sharded; a checkpoint fits any number of processes.

torchrun --nproc-per-node 2 examples/fsdp2.py    # with more steps, also in one process, it continues
"""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import mse_loss

import adan_optim

STEPS = 8
CHECKPOINTS = Path("runs/fsdp2")

torch.manual_seed(0)
layers = nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 5), nn.GELU(), nn.Linear(5, 1)
model = nn.Sequential(*layers).double()


def batch(step):
    """Return inputs [8, 6] and targets [8, 1]."""
    x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return x, x.sin().sum(dim=1, keepdim=True)


dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
mesh = dist.init_device_mesh("cpu", (world,))
for layer in (model[0], model[3]):
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = adan_optim.build_optimizer(model, "adan", lr=0.01, weight_decay=0.1, max_grad_norm=0.5)
start, done = 0, sorted(CHECKPOINTS.glob("step*"))
if done:
    weights, states = get_state_dict(model, optimizer)
    saved = {"model": weights, "optimizer": states, "step": 0}
    dcp.load(saved, checkpoint_id=done[-1])
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)
    start = saved["step"]
for step in range(start, STEPS):
    x, y = (rows[rank::world] for rows in batch(step))
    optimizer.zero_grad()
    mse_loss(model(x), y).backward()
    optimizer.step()
weights, states = get_state_dict(model, optimizer)
saved = {"model": weights, "optimizer": states, "step": STEPS}
dcp.save(saved, checkpoint_id=CHECKPOINTS / f"step{STEPS:06}")

x, y = batch(1000)
loss = mse_loss(model(x), y).item()
if rank == 0:
    print(f"loss {loss:.9f}")
dist.destroy_process_group()
