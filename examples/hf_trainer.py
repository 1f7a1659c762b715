"""Hugging Face Trainer: the class and its arguments; groups, schedule and checkpoints are the Trainer's."""

import torch
from task import ARGS, OPTIONS, batch, network, report
from transformers import Trainer, TrainingArguments

import optim


class Model(torch.nn.Module):
    """The network as the Trainer wants it; any model of transformers is like that."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.network(x) - labels).square().mean()}


rows = [{"x": x, "labels": y} for step in range(8) for x, y in zip(*batch(step, 0, 1), strict=True)]
settings = TrainingArguments(
    output_dir=f"{ARGS.folder}/trainer-{ARGS.optimizer}",
    per_device_train_batch_size=8,
    max_steps=ARGS.steps,
    weight_decay=OPTIONS["weight_decay"],  # the Trainer makes groups: none on biases and norms
    lr_scheduler_type="constant",
    max_grad_norm=0,  # the Trainer's own clipping; use the optimizer's, which is part of its step
    train_sampling_strategy="sequential",
    save_steps=4,
    use_cpu=True,
    disable_tqdm=True,
    report_to="none",
)
model = Model()
plug = optim.OPTIMIZERS[ARGS.optimizer], OPTIONS
trainer = Trainer(model, settings, train_dataset=rows, optimizer_cls_and_kwargs=plug)
trainer.train()
report(model.network)
