"""Step in the backward pass: only one gradient exists at a time."""

from task import ARGS, OPTIONS, batch, loss, network, report

import adan_optim

model = network()
optimizer = adan_optim.build_optimizer(model, ARGS.optimizer, **OPTIONS)
adan_optim.step_in_backward(optimizer)
for step in range(ARGS.steps):
    loss(model, *batch(step)).backward()  # updates the parameters, and leaves no gradients
report(model)
