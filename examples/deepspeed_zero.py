"""DeepSpeed, ZeRO stage 1 or 2: DeepSpeed gets the optimizer, and shards its states.

DS_ACCELERATOR=cpu torchrun --nproc-per-node 2 examples/deepspeed_zero.py    # without a GPU
"""

import os

import deepspeed
import torch
from torch import nn
from torch.nn.functional import mse_loss

import adan_optim

STAGE = 2
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])  # from torchrun

torch.manual_seed(0)
layers = nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 5), nn.GELU(), nn.Linear(5, 1)
model = nn.Sequential(*layers).double()


def batch(step):
    """Return inputs [8, 6] and targets [8, 1]."""
    x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return x, x.sin().sum(dim=1, keepdim=True)


config = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 8 // world,
    "gradient_clipping": 0.5,  # DeepSpeed clips: the optimizer sees only some of the gradients
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {"stage": STAGE},
}
optimizer = adan_optim.build_optimizer(model, "adan", lr=0.01, weight_decay=0.1)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
for step in range(8):
    x, y = (rows[rank::world] for rows in batch(step))
    engine.backward(mse_loss(engine(x), y))
    engine.step()

x, y = batch(1000)
if rank == 0:
    print(f"loss {mse_loss(model(x), y).item():.6f}")
