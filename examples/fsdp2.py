"""FSDP2: parameters, gradients and states are sharded; a checkpoint fits any number of processes.

torchrun --nproc-per-node 2 examples/fsdp2.py --steps 4
torchrun --nproc-per-node 1 examples/fsdp2.py --steps 8    # continues from the fourth step
"""

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from task import ARGS, OPTIONS, batch, checkpoint, last_checkpoint, loss, network, report
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import adan_optim

dist.init_process_group("gloo")
mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
model = network()
for layer in (model[0], model[3]):
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = adan_optim.build_optimizer(model, ARGS.optimizer, **OPTIONS)
start = last_checkpoint()
if start:
    weights, states = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": states}, checkpoint_id=checkpoint(start))
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)
for step in range(start, ARGS.steps):
    optimizer.zero_grad()
    loss(model, *batch(step)).backward()
    optimizer.step()
weights, states = get_state_dict(model, optimizer)
dcp.save({"model": weights, "optimizer": states}, checkpoint_id=checkpoint(ARGS.steps))
report(model)
dist.destroy_process_group()
