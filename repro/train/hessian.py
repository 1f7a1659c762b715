"""Estimates of the diagonal of the Hessian, for Sophia."""

from typing import Any

from accelerate import Accelerator

import adan_optim
from repro.train.state import TrainState
from repro.train.task import Task


def estimate_hessian(task: Task, state: TrainState, accelerator: Accelerator, batch: Any) -> None:
    """Give Sophia an estimate of the Hessian's diagonal from a micro-batch; do nothing for other optimizers.

    Every process calls this: the estimate is the mean over all of them.
    """
    if not isinstance(state.optimizer, adan_optim.Sophia):
        return
    with accelerator.autocast():
        logits = task.logits(state.module, batch)
    params = [p for p in state.module.parameters() if p.requires_grad]
    estimates = adan_optim.gauss_newton_bartlett(logits, params)
    state.optimizer.update_hessian({p: accelerator.reduce(x, "mean") for p, x in estimates.items()})
