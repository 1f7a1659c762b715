"""The Trainer is given an optimizer, built from our groups, instead of a class."""

from shared import batch, network
from torch import nn
from torch.nn.functional import mse_loss
from transformers import Trainer, TrainingArguments

import adan_optim


class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = model

    def forward(self, x, labels):
        return {"loss": mse_loss(self.network(x), labels)}


model = network()
rows = [{"x": x, "labels": y} for step in range(8) for x, y in zip(*batch(step), strict=True)]
settings = TrainingArguments(
    output_dir="runs",
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    max_steps=8,
    max_grad_norm=0,
    lr_scheduler_type="constant",
    train_sampling_strategy="sequential",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
)
optimizer = adan_optim.build_optimizer(model, "adan", lr=0.01, weight_decay=0.1)
Trainer(WithLoss(), settings, train_dataset=rows, optimizers=(optimizer, None)).train()
