"""torchrun: FSDP2 steps each shard when its gradient has been reduced."""

import torch.distributed as dist
from shared import batch, network
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import mse_loss

import adan_optim

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
mesh = dist.init_device_mesh("cpu", (world,))
model = network()
for layer in (model[0], model[3]):
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
adan_optim.step_in_backward(adan_optim.build_optimizer(model, "adan", lr=0.01, weight_decay=0.1))
for step in range(8):
    x, y = batch(step, rank, world)
    mse_loss(model(x), y).backward()
    assert all(p.grad is None for p in model.parameters())
