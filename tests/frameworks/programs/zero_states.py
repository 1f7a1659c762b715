"""torchrun: ZeroRedundancyOptimizer's states, consolidated on one process, are loaded into a new one."""

import torch.distributed as dist
from shared import batch, network
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

import adan_optim

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def build(model):
    """With an option of the whole optimizer, which it repeats in the groups, and parameters in buckets."""
    return ZeroRedundancyOptimizer(
        adan_optim.param_groups(model, lr=0.01, weight_decay=0.1),
        optimizer_class=adan_optim.Adan,
        parameters_as_bucket_view=True,
        foreach=True,
    )


def train(model, optimizer, steps):
    parallel = DistributedDataParallel(model)
    for step in steps:
        x, y = batch(step, rank, world)
        optimizer.zero_grad()
        mse_loss(parallel(x), y).backward()
        optimizer.step()


first = network()
optimizer = build(first)
train(first, optimizer, range(4))
optimizer.consolidate_state_dict(to=0)
saved = [optimizer.state_dict() if rank == 0 else None]
dist.broadcast_object_list(saved, src=0)
assert len(saved[0]["state"]) == len(list(first.parameters()))

model = network()
model.load_state_dict(first.state_dict())
continued = build(model)
continued.load_state_dict(saved[0])
train(model, continued, range(4, 8))
