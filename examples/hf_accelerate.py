"""Hugging Face accelerate: gradients accumulated over two halves of a batch, and a checkpoint halfway."""

from accelerate import Accelerator
from task import ARGS, OPTIONS, batch, loss, network, report

import optim

accelerator = Accelerator(gradient_accumulation_steps=2)
model = network()
optimizer = optim.build_optimizer(model, ARGS.optimizer, **OPTIONS)
prepared, optimizer = accelerator.prepare(model, optimizer)
for step in range(ARGS.steps):
    for half in range(2):
        with accelerator.accumulate(prepared):
            accelerator.backward(loss(prepared, *batch(step, rank=half, world=2)))
            optimizer.step()
            optimizer.zero_grad()
    if step == 3:
        accelerator.save_state(f"{ARGS.folder}/accelerate-{ARGS.optimizer}")
report(model)
