"""Hugging Face Trainer: it gets our class and arguments; groups, schedule and checkpoints are its own."""

import torch
from task import ARGS, OPTIONS, batch, checkpoint, last_checkpoint, network, report
from transformers import Trainer, TrainingArguments

import adan_optim


class Model(torch.nn.Module):
    """The network as the Trainer expects it: called with the columns of the data, it returns the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.network(x) - labels).square().mean()}


rows = [{"x": x, "labels": y} for step in range(8) for x, y in zip(*batch(step, 0, 1), strict=True)]
settings = TrainingArguments(
    output_dir=str(checkpoint(0).parent),
    per_device_train_batch_size=8,
    max_steps=ARGS.steps,
    weight_decay=OPTIONS["weight_decay"],  # for the groups that the Trainer makes: not biases and norms
    max_grad_norm=0,  # the Trainer's own clipping; the optimizer's is part of its step
    lr_scheduler_type="constant",
    train_sampling_strategy="sequential",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
)
model = Model()
plug = (adan_optim.OPTIMIZERS[ARGS.optimizer], OPTIONS)
trainer = Trainer(model, settings, train_dataset=rows, optimizer_cls_and_kwargs=plug)
trainer.train(resume_from_checkpoint=bool(last_checkpoint()))
report(model.network)
