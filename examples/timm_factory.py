"""timm: its factory builds the optimizer, with its own parameter groups and options."""

from task import ARGS, OPTIONS, batch, loss, network, report
from timm.optim import create_optimizer_v2

from adan_optim.interop.integrations import register

register("timm")
model = network()
name = ARGS.optimizer.replace("_", "-")
optimizer = create_optimizer_v2(model, f"adan-optim.{name}", **OPTIONS)
for step in range(ARGS.steps):
    optimizer.zero_grad()
    loss(model, *batch(step)).backward()
    optimizer.step()
report(model)
