"""torchrun: FSDP2 steps each shard when its gradient has been reduced."""

import torch.distributed as dist
from task import ARGS, OPTIONS, batch, loss, network, report
from torch.distributed.fsdp import fully_shard

import adan_optim

dist.init_process_group("gloo")
mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
model = network()
for layer in (model[0], model[3]):
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
adan_optim.step_in_backward(adan_optim.build_optimizer(model, ARGS.optimizer, **OPTIONS))
for step in range(ARGS.steps):
    loss(model, *batch(step)).backward()
    assert all(p.grad is None for p in model.parameters())
report(model)
dist.destroy_process_group()
