"""Hugging Face accelerate: gradients accumulated over two halves of a batch, and accelerate's checkpoints."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import mse_loss

import adan_optim

STEPS = 8
CHECKPOINT = Path("runs/hf_accelerate")

torch.manual_seed(0)
layers = nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 5), nn.GELU(), nn.Linear(5, 1)
model = nn.Sequential(*layers).double()


def batch(step):
    """Return inputs [8, 6] and targets [8, 1]."""
    x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return x, x.sin().sum(dim=1, keepdim=True)


accelerator = Accelerator(gradient_accumulation_steps=2)
optimizer = adan_optim.build_optimizer(model, "adan", lr=0.01, weight_decay=0.1, max_grad_norm=0.5)
prepared, optimizer = accelerator.prepare(model, optimizer)
start = 0
if CHECKPOINT.exists():
    accelerator.load_state(CHECKPOINT)
    start = int(optimizer.state[model[0].weight]["step"])
for step in range(start, STEPS):
    for half in range(2):
        x, y = (rows[half::2] for rows in batch(step))
        with accelerator.accumulate(prepared):
            accelerator.backward(mse_loss(prepared(x), y))
            optimizer.step()
            optimizer.zero_grad()
accelerator.save_state(CHECKPOINT)

x, y = batch(1000)
print(f"loss {mse_loss(model(x), y).item():.9f}")
