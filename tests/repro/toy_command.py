"""An entry point for the toy task, whose jobs test_slurm.py submits; the first process can be interrupted."""

import os
import signal
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from torch import Tensor, nn
from toy import ToyTask

from repro.errors import UserError
from repro.train.cli import entry_point
from repro.train.config import TrainConfig
from repro.train.run_folder import run_name
from repro.train.trainer import train

ConfigStore.instance().store(name="toy_schema", node=TrainConfig)


class Interrupted(ToyTask):
    """The signal reaches the first process before its sixth micro-batch, unless a file `sent` is there."""

    def __init__(self, sent: Path) -> None:
        super().__init__()
        self.sent = sent

    def build_model(self) -> nn.Module:  # without BatchNorm, which sees the processes
        return nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.2), nn.Linear(4, 2))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        if len(self.seen) == 5 and os.environ.get("RANK") == "0" and not self.sent.exists():
            self.sent.touch()
            os.kill(os.getpid(), signal.SIGUSR2)
        return super().loss(model, batch)


@entry_point("toy", TrainConfig)
def main(config: TrainConfig, overrides: list[str]) -> None:
    config.check()
    if config.seed == 13:
        raise UserError("seed=13: is unlucky")
    if config.seed == 14:
        raise ZeroDivisionError("a fault of ours")
    train(Interrupted(Path(config.run.root) / "sent"), config, config.run.name or run_name(overrides))
