"""Hugging Face Trainer: it gets our class and arguments; groups, schedule and checkpoints are its own."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import mse_loss
from transformers import Trainer, TrainingArguments

import adan_optim

STEPS = 8
CHECKPOINTS = Path("runs/hf_trainer")

torch.manual_seed(0)
layers = nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 5), nn.GELU(), nn.Linear(5, 1)
model = nn.Sequential(*layers).double()


def batch(step):
    """Return inputs [8, 6] and targets [8, 1]."""
    x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return x, x.sin().sum(dim=1, keepdim=True)


class WithLoss(nn.Module):
    """The model as the Trainer expects it: called with the columns of the data, it returns the loss."""

    def __init__(self):
        super().__init__()
        self.network = model

    def forward(self, x, labels):
        return {"loss": mse_loss(self.network(x), labels)}


rows = [{"x": x, "labels": y} for step in range(8) for x, y in zip(*batch(step), strict=True)]
settings = TrainingArguments(
    output_dir=str(CHECKPOINTS),
    per_device_train_batch_size=8,
    max_steps=STEPS,
    weight_decay=0.1,  # for the groups that the Trainer makes: not biases and norms
    max_grad_norm=0,  # the Trainer's own clipping; the optimizer's is part of its step
    lr_scheduler_type="constant",
    train_sampling_strategy="sequential",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
)
plug = (adan_optim.Adan, {"lr": 0.01, "max_grad_norm": 0.5})
trainer = Trainer(WithLoss(), settings, train_dataset=rows, optimizer_cls_and_kwargs=plug)
trainer.train(resume_from_checkpoint=any(CHECKPOINTS.glob("checkpoint-*")))

x, y = batch(1000)
print(f"loss {mse_loss(model(x), y).item():.9f}")
