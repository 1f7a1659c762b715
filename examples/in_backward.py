"""Stepping in the backward pass: one gradient is alive at a time, instead of all."""

from task import ARGS, OPTIONS, batch, loss, network, report

import optim

model = network()
optimizer = optim.build_optimizer(model, ARGS.optimizer, **OPTIONS)
optim.step_in_backward(optimizer)
for step in range(ARGS.steps):
    loss(model, *batch(step)).backward()  # updates the parameters, and leaves no gradients
report(model)
