"""A plain loop whose optimizer is made from a class and groups, as frameworks do that take a class.

The same as from a model, except where `build_optimizer` would take more than the groups from the model.
"""

from task import ARGS, OPTIONS, batch, loss, network, report

import adan_optim

model = network()
groups = adan_optim.param_groups(model, OPTIONS["lr"], OPTIONS["weight_decay"])
optimizer = adan_optim.OPTIMIZERS[ARGS.optimizer](groups, **OPTIONS)
for step in range(ARGS.steps):
    optimizer.zero_grad()
    loss(model, *batch(step)).backward()
    optimizer.step()
report(model)
