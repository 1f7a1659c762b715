"""Lightning: `configure_optimizers` returns the optimizer; checkpoints are the Trainer's."""

from pathlib import Path

import lightning
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader

import adan_optim

STEPS = 8
CHECKPOINT = Path("runs/lightning.ckpt")

torch.manual_seed(0)
layers = nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 5), nn.GELU(), nn.Linear(5, 1)
model = nn.Sequential(*layers).double()


def batch(step):
    """Return inputs [8, 6] and targets [8, 1]."""
    x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return x, x.sin().sum(dim=1, keepdim=True)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = model

    def training_step(self, rows):
        return mse_loss(self.network(rows[0]), rows[1])

    def train_dataloader(self):  # an epoch is four batches: Lightning resumes between epochs
        first = self.trainer.global_step
        return DataLoader([batch(step) for step in range(first, first + 4)], batch_size=None)

    def configure_optimizers(self):
        options = {"lr": 0.01, "weight_decay": 0.1, "max_grad_norm": 0.5}
        return adan_optim.build_optimizer(self.network, "adan", **options)


trainer = lightning.Trainer(
    max_steps=STEPS,
    reload_dataloaders_every_n_epochs=1,
    accelerator="cpu",
    devices=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Module(), ckpt_path=CHECKPOINT if CHECKPOINT.exists() else None)
trainer.save_checkpoint(CHECKPOINT)

x, y = batch(1000)
print(f"loss {mse_loss(model(x), y).item():.9f}")
