"""Lightning: `configure_optimizers` returns the optimizer; checkpoints are the Trainer's."""

import lightning
import torch
from task import ARGS, OPTIONS, batch, checkpoint, last_checkpoint, loss, network, report
from torch.utils.data import DataLoader

import adan_optim


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def training_step(self, rows: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return loss(self.network, *rows)

    def train_dataloader(self) -> DataLoader:  # an epoch is four batches: Lightning resumes between epochs
        first = self.trainer.global_step
        return DataLoader([batch(step) for step in range(first, first + 4)], batch_size=None)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adan_optim.build_optimizer(self.network, ARGS.optimizer, **OPTIONS)


start = last_checkpoint()
module = Module()
trainer = lightning.Trainer(
    max_steps=ARGS.steps,
    reload_dataloaders_every_n_epochs=1,
    accelerator="cpu",
    devices=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, ckpt_path=checkpoint(start) if start else None)
trainer.save_checkpoint(checkpoint(ARGS.steps))
report(module.network)
