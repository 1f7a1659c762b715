"""PyTorch alone. Another run with more steps continues from the checkpoint."""

import torch
from task import ARGS, OPTIONS, batch, checkpoint, last_checkpoint, loss, network, report

import adan_optim

model = network()
optimizer = adan_optim.build_optimizer(model, ARGS.optimizer, **OPTIONS)
start = last_checkpoint()
if start:
    saved = torch.load(checkpoint(start))
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
for step in range(start, ARGS.steps):
    optimizer.zero_grad()
    loss(model, *batch(step)).backward()
    optimizer.step()
checkpoint(ARGS.steps).parent.mkdir(parents=True, exist_ok=True)
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint(ARGS.steps))
report(model)
