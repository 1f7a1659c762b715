"""Schedule-free AdamW (arXiv 2405.15682)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .base import Options
from .card import Card, FusedRule
from .engine.rule import Group
from .engine.storage import State, States, Tensors
from .schedule_free import OPTIONS, SMALL, ScheduleFree, denominators


class ScheduleFreeAdamW(ScheduleFree):
    """Schedule-free AdamW: no schedule of the learning rate, and the mean of the steps instead of momentum.

    The iterates y, z and x, the learning rate lr_t and the modes are those of `ScheduleFree`. With g the
    gradient at y::

        v = b2 v + (1 - b2) g^2                                             exp_avg_sq
        d = g / [sqrt(v) / sqrt(1 - b2^t) + eps] + weight_decay y

    Source: arXiv 2405.15682, Algorithm 1, with AdamW as in its section on practice: weight decay at y.

    Call `optimizer.eval()` before evaluation and export, and `optimizer.train()` before training goes on, or
    evaluate within `adan_optim.evaluating(optimizer)`. Checkpoints of AdamW cannot be converted: they have no
    z, and their first moment is no mean of parameters.

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: learning rate; the authors take 1 to 10 times that of AdamW with a schedule.
        betas: the interpolation b1, above 0, which must not change during a run, and the decay factor of the
            squared gradient. For long runs the authors try 0.95 and 0.98 for b1.
        eps: added to the denominator, after the bias correction.
        weight_decay: decoupled weight decay, of y.
        warmup_steps: steps in which the learning rate grows to lr; without a schedule, give some.
        r: step t has a weight of t^r in the mean.
        weight_lr_power: and of the largest learning rate so far to this power.
    """

    card = Card(
        name="schedule_free_adamw",
        title="Schedule-free AdamW",
        source="arXiv 2405.15682, Algorithm 1; facebookresearch/schedule_free",
        when="AdamW's state without a schedule: runs whose end is not known",
        states={"z": "z, the point that the steps move", "exp_avg_sq": "v, mean of the squared gradient"},
        small=SMALL,
        betas=2,
        iterates=("z",),
        nonnegative=("exp_avg_sq",),
        options=OPTIONS,
        rules=(FusedRule("schedule_free_adamw", ("z", "exp_avg_sq"), factors=True),),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2.5e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = None,
        fused: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        hyper = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, train_mode=True)
        hyper |= dict(warmup_steps=warmup_steps, r=r, weight_lr_power=weight_lr_power)
        super().__init__(params, hyper, max_grad_norm=max_grad_norm, foreach=foreach, fused=fused, **options)

    def direction(self, g: Tensor, state: State, t: float, group: Group) -> Tensor:
        b2 = group["betas"][1]
        v = state["exp_avg_sq"].mul_(b2).add_(g.square(), alpha=1 - b2)
        return g.div(v.sqrt() / math.sqrt(1 - b2**t) + group["eps"])

    def directions(self, g: Tensors, state: States, t: list[float], group: Group) -> Tensors:
        b2, v = group["betas"][1], state["exp_avg_sq"]
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, g, g, 1 - b2)
        return list(torch._foreach_div(g, denominators(v, b2, t, group)))
