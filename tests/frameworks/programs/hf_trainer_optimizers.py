"""The Trainer is given an optimizer, built from our groups, instead of a class."""

import torch
from task import ARGS, OPTIONS, batch, network, report
from transformers import Trainer, TrainingArguments

import adan_optim


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, x, labels):
        return {"loss": (self.network(x) - labels).square().mean()}


rows = [{"x": x, "labels": y} for step in range(8) for x, y in zip(*batch(step), strict=True)]
settings = TrainingArguments(
    output_dir=ARGS.folder,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    max_steps=ARGS.steps,
    max_grad_norm=0,
    lr_scheduler_type="constant",
    train_sampling_strategy="sequential",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
)
model = Model()
optimizer = adan_optim.build_optimizer(model, ARGS.optimizer, **OPTIONS)
Trainer(model, settings, train_dataset=rows, optimizers=(optimizer, None)).train()
report(model.network)
