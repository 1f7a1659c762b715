"""The names of facebookresearch/dadaptation: its DAdaptAdan, which is our Prodigy-Adan."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..prodigy import ProdigyAdan
from ..warn import warn


class DAdaptAdan(ProdigyAdan):
    """Adan without a learning rate, with the arguments of dadaptation's DAdaptAdan: it is our `ProdigyAdan`.

    So d is Prodigy's estimate (arXiv 2306.06101), not that of D-Adaptation (arXiv 2301.07733), and runs do
    not repeat those of the original. The original leaves out Adan's bias corrections, so its first steps are
    short; it reads lr and betas from the first group alone; it waits for the device three times a parameter
    in each step; and it keeps 20 bytes of state a parameter, which cannot be smaller (ours are 24, and 12
    with state_dtype="bfloat16"). Its checkpoints have no x0 and are refused.

    Args:
        params, lr, betas, eps, weight_decay, no_prox, d0: see `ProdigyAdan`; lr is a multiplier, 1 as a rule.
        log_every: anything but 0 is a warning: read `optimizer.param_groups[0]["d"]`, a tensor, instead.
        growth_rate: the most by which d grows in a step; inf is no limit.
        options: what else `ProdigyAdan` has, by name.

    Raises:
        ValueError, TypeError: see `ProdigyAdan`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        betas: Sequence[float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.02,
        no_prox: bool = False,
        log_every: int = 0,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        **options: Any,
    ) -> None:
        if log_every:
            warn(f'log_every={log_every} prints nothing here: read param_groups[0]["d"]')
        super().__init__(
            params,
            lr,
            betas,
            eps=eps,
            weight_decay=weight_decay,
            no_prox=no_prox,
            d0=d0,
            growth_rate=growth_rate,
            **options,
        )
