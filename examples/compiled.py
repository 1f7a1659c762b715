"""torch.compile: the model is compiled; the step, which is one kernel already, runs as it is."""

import torch
from task import ARGS, OPTIONS, batch, loss, network, report

import optim

model = network()
optimizer = optim.build_optimizer(model, ARGS.optimizer, **OPTIONS)


@torch.compile(backend="aot_eager")  # on your machine: @torch.compile
def training_step(x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss(model, x, y).backward()
    optimizer.step()


for step in range(ARGS.steps):
    training_step(*batch(step))
report(model)
