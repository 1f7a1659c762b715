"""Schedule-free Adan under the names and with the arguments that neosr and traiNNer-redux have."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..adan import Adan
from ..base import Optimizer
from ..schedule_free_adan import ScheduleFreeAdan


def AdanScheduleFree(
    params: ParamsT,
    lr: float | Tensor = 1.6e-3,
    betas: Sequence[float] = (0.98, 0.92, 0.987),
    eps: float = 1e-8,
    weight_decay: float = 0.02,
    max_grad_norm: float = 0.0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    schedule_free: bool = True,
    **options: Any,
) -> Optimizer:
    """Build schedule-free Adan, or Adan, with the arguments of neosr's `adan_sf` and in its order.

    The defaults are neosr's. traiNNer-redux's `AdanScheduleFree` has no `schedule_free`, and other defaults:
    lr=1e-3, betas=(0.98, 0.92, 0.99), weight_decay=0.01, warmup_steps=1600.

    The arithmetic is that of `adan_optim.ScheduleFreeAdan`, and not theirs, which is no schedule-free method:

    * neosr multiplies the step by the bias correction 1 - b1^t, which Adan divides by: it begins at 2 % of
      its length. It moves z by lr times the gradient, without Adan's denominator: z, and with it the mean
      that is evaluated, depends on the scale of the loss.
    * Both add an Adan step times 1 - c to y, where the method adds one times 1 - b1 (1 - c): y is not
      between z and a mean any more, and what eval() computes is not the mean of z.
    * Both keep Adan's first moment in addition to the interpolation: two momenta.
    * Both count the warm-up in the weights of the mean, and not in the learning rate of the steps.

    docs/dropins.md has the lines that show it. Their checkpoints are refused, because their z means something
    else.

    Args:
        params, lr, eps, max_grad_norm, options: as in `adan_optim.ScheduleFreeAdan`.
        betas: the interpolation, and the decay factors of gradient difference and squares; with
            schedule_free=False those of Adan.
        weight_decay: decoupled, in Adan too (no_prox=True).
        warmup_steps, r, weight_lr_power: as in `adan_optim.ScheduleFreeAdan`; without a meaning with
            schedule_free=False.
        schedule_free: False gives `adan_optim.Adan`.

    Raises:
        ValueError: with schedule_free=False, for a warm-up, which then is the scheduler's.
    """
    common: dict[str, Any] = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    common |= dict(max_grad_norm=max_grad_norm, **options)
    if schedule_free:
        weights = dict(warmup_steps=warmup_steps, r=r, weight_lr_power=weight_lr_power)
        return ScheduleFreeAdan(params, **common, **weights)  # type: ignore[arg-type]
    if warmup_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} with schedule_free=False: plain Adan has no warm-up of its own; "
            "give it to the learning rate's scheduler"
        )
    return Adan(params, **{"no_prox": True, **common})


adan_sf = AdanScheduleFree
