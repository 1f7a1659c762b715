"""A plain loop whose optimizer is made from a class and groups, as frameworks do that take a class.

The same as from a model, except where `build_optimizer` would take more than the groups from the model.
"""

from shared import batch, network
from torch.nn.functional import mse_loss

import adan_optim

model = network()
groups = adan_optim.param_groups(model, lr=0.01, weight_decay=0.1)
optimizer = adan_optim.Adan(groups, max_grad_norm=0.5)
for step in range(8):
    x, y = batch(step)
    optimizer.zero_grad()
    mse_loss(model(x), y).backward()
    optimizer.step()
