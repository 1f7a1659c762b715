"""ZeroRedundancyOptimizer (ZeRO-1): each process keeps the states of its share of the parameters.

torchrun --nproc-per-node 2 examples/zero_redundancy.py
"""

from functools import partial

import torch.distributed as dist
from task import ARGS, OPTIONS, batch, loss, network, report
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import adan_optim

dist.init_process_group("gloo")
model = network()
parallel = DistributedDataParallel(model)
groups = adan_optim.param_groups(model, OPTIONS["lr"], OPTIONS["weight_decay"])
# Each process has some of the parameters, and clips by the norm of all.
ours = partial(adan_optim.OPTIMIZERS[ARGS.optimizer], process_group="world")
optimizer = ZeroRedundancyOptimizer(groups, optimizer_class=ours, max_grad_norm=ARGS.max_grad_norm)
for step in range(ARGS.steps):
    optimizer.zero_grad()
    loss(parallel, *batch(step)).backward()
    optimizer.step()
optimizer.consolidate_state_dict(to=0)  # before optimizer.state_dict() on process 0: gathers all states
report(model)
dist.destroy_process_group()
