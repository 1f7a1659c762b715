"""PyTorch alone. With more steps, another run continues from the checkpoint."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import mse_loss

import adan_optim

STEPS = 8
CHECKPOINT = Path("runs/plain.pt")

torch.manual_seed(0)
layers = nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 5), nn.GELU(), nn.Linear(5, 1)
model = nn.Sequential(*layers).double()


def batch(step):
    """Return inputs [8, 6] and targets [8, 1]."""
    x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return x, x.sin().sum(dim=1, keepdim=True)


optimizer = adan_optim.build_optimizer(model, "adan", lr=0.01, weight_decay=0.1, max_grad_norm=0.5)
start = 0
if CHECKPOINT.exists():
    saved = torch.load(CHECKPOINT)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    start = saved["step"]
for step in range(start, STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    mse_loss(model(x), y).backward()
    optimizer.step()
CHECKPOINT.parent.mkdir(exist_ok=True)
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": STEPS}, CHECKPOINT)

x, y = batch(1000)
print(f"loss {mse_loss(model(x), y).item():.9f}")
