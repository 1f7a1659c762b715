"""Hugging Face accelerate: gradients accumulated over two halves of a batch, and accelerate's checkpoints."""

from accelerate import Accelerator
from task import ARGS, OPTIONS, batch, checkpoint, last_checkpoint, loss, network, report

import adan_optim

accelerator = Accelerator(gradient_accumulation_steps=2)
model = network()
optimizer = adan_optim.build_optimizer(model, ARGS.optimizer, **OPTIONS)
prepared, optimizer = accelerator.prepare(model, optimizer)
start = last_checkpoint()
if start:
    accelerator.load_state(checkpoint(start))
for step in range(start, ARGS.steps):
    for half in range(2):
        with accelerator.accumulate(prepared):
            accelerator.backward(loss(prepared, *batch(step, rank=half, world=2)))
            optimizer.step()
            optimizer.zero_grad()
accelerator.save_state(checkpoint(ARGS.steps))
report(model)
