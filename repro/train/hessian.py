"""Estimates of the Hessian's diagonal, for optimizers that want them."""

from typing import TYPE_CHECKING, Any

import optim

if TYPE_CHECKING:
    from repro.train.trainer import Trainer


def estimate_hessian(trainer: "Trainer", batch: Any) -> None:
    """Give Sophia an estimate of the Hessian's diagonal from a micro-batch; others want none.

    Every process calls it: it is the mean over all of them.
    """
    optimizer, accelerator = trainer.bare_optimizer, trainer.accelerator
    if not isinstance(optimizer, optim.Sophia):
        return
    with accelerator.autocast():
        logits = trainer.task.logits(trainer.module, batch)
    params = [p for p in trainer.module.parameters() if p.requires_grad]
    estimates = optim.gauss_newton_bartlett(logits, params)
    optimizer.update_hessian({p: accelerator.reduce(x, "mean") for p, x in estimates.items()})
