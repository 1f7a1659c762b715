"""torchrun: ZeroRedundancyOptimizer's states, consolidated on one process, are loaded into a new one."""

import torch.distributed as dist
from task import ARGS, OPTIONS, batch, loss, network, report
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import adan_optim

dist.init_process_group("gloo")


def build(model):
    """With an option of the whole optimizer, which it repeats in the groups, and parameters in buckets."""
    return ZeroRedundancyOptimizer(
        adan_optim.param_groups(model, OPTIONS["lr"], OPTIONS["weight_decay"]),
        optimizer_class=adan_optim.OPTIMIZERS[ARGS.optimizer],
        parameters_as_bucket_view=True,
        foreach=True,
    )


def train(model, optimizer, steps):
    parallel = DistributedDataParallel(model)
    for step in steps:
        optimizer.zero_grad()
        loss(parallel, *batch(step)).backward()
        optimizer.step()


model = network()
optimizer = build(model)
train(model, optimizer, range(4))
optimizer.consolidate_state_dict(to=0)
saved = [optimizer.state_dict() if dist.get_rank() == 0 else None]
dist.broadcast_object_list(saved, src=0)
assert len(saved[0]["state"]) == len(list(model.parameters()))

fresh = network()
fresh.load_state_dict(model.state_dict())
continued = build(fresh)
continued.load_state_dict(saved[0])
train(fresh, continued, range(4, ARGS.steps))
report(fresh)
dist.destroy_process_group()
