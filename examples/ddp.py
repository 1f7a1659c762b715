"""DistributedDataParallel: every process holds everything; gradients are averaged.

torchrun --nproc-per-node 2 examples/ddp.py
"""

import torch.distributed as dist
from task import ARGS, OPTIONS, batch, loss, network, report
from torch.nn.parallel import DistributedDataParallel

import adan_optim

dist.init_process_group("gloo")
model = network()
parallel = DistributedDataParallel(model)
optimizer = adan_optim.build_optimizer(model, ARGS.optimizer, **OPTIONS)
for step in range(ARGS.steps):
    optimizer.zero_grad()
    loss(parallel, *batch(step)).backward()
    optimizer.step()
report(model)
dist.destroy_process_group()
