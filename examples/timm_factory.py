"""timm: its factory builds the optimizer, with its own parameter groups and options."""

import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn.functional import mse_loss

from adan_optim.interop.integrations import register

torch.manual_seed(0)
layers = nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 5), nn.GELU(), nn.Linear(5, 1)
model = nn.Sequential(*layers).double()


def batch(step):
    """Return inputs [8, 6] and targets [8, 1]."""
    x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return x, x.sin().sum(dim=1, keepdim=True)


register("timm")
optimizer = create_optimizer_v2(model, "adan-optim.adan", lr=0.01, weight_decay=0.1, max_grad_norm=0.5)
for step in range(8):
    x, y = batch(step)
    optimizer.zero_grad()
    mse_loss(model(x), y).backward()
    optimizer.step()

x, y = batch(1000)
print(f"loss {mse_loss(model(x), y).item():.9f}")
