"""torch.compile: the model is compiled; the step is one kernel already and stays uncompiled."""

import torch
from task import ARGS, OPTIONS, batch, loss, network, report

import adan_optim

model = network()
optimizer = adan_optim.build_optimizer(model, ARGS.optimizer, **OPTIONS)
compiled = torch.compile(model, backend="aot_eager")  # the default backend also generates code
for step in range(ARGS.steps):
    optimizer.zero_grad()
    loss(compiled, *batch(step)).backward()
    optimizer.step()
report(model)
