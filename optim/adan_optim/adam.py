"""Adam (arXiv 1412.6980), with L2 regularisation instead of decoupled weight decay."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .adamw import AdamW
from .base import Options


class Adam(AdamW):
    """Adam, as `torch.optim.Adam` computes it; it loads that optimizer's checkpoints.

    With g the gradient at step t = 1, 2, ... and all tensors of the parameter's shape::

        g = g + weight_decay p
        m = b1 m + (1 - b1) g                                       exp_avg
        v = b2 v + (1 - b2) g^2                                     exp_avg_sq
        w = max(w, v) with amsgrad, else v                          max_exp_avg_sq
        p = p - lr [m / (1 - b1^t)] / [sqrt(w) / sqrt(1 - b2^t) + eps]

    Everything but the weight decay is AdamW's. Source: Algorithm 1 of the paper.

    8-bit Adam is `state_dtype="int8"`: both means in 8-bit codes, block by block (the idea of arXiv
    2110.02861; the codes and their stochastic rounding are our own, see docs/optim.md).

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: learning rate.
        betas: decay factors of gradient and squared gradient.
        eps: added to the denominator, after the bias correction.
        weight_decay: factor of the L2 penalty p^2 / 2; its gradient enters both means.
        amsgrad: divide by the largest v so far instead of v; not on the fused path.
    """

    card = replace(
        AdamW.card,
        name="adam",
        title="Adam",
        source="arXiv 1412.6980, Algorithm 1; torch.optim.Adam",
        when="to rerun results that were made with it; otherwise AdamW",
    )
    decoupled = False

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        foreach: bool | None = None,
        fused: bool | None = None,
        *,
        amsgrad: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, max_grad_norm, foreach, fused, amsgrad=amsgrad, **options
        )
