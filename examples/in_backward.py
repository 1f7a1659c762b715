"""Step in the backward pass: only one gradient exists at a time."""

from task import ARGS, OPTIONS, batch, loss, network, report

import optim

model = network()
optimizer = optim.build_optimizer(model, ARGS.optimizer, **OPTIONS)
optim.step_in_backward(optimizer)
for step in range(ARGS.steps):
    loss(model, *batch(step)).backward()  # updates the parameters, and leaves no gradients
report(model)
