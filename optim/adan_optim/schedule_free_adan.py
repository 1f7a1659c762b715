"""Schedule-free Adan: the direction of Adan (arXiv 2208.06677) in the scheme of arXiv 2405.15682."""

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


class ScheduleFreeAdan(ScheduleFree):
    """Schedule-free Adan: Adan's direction, with the mean of the steps in place of its first moment.

    The iterates y, z and x, the learning rate lr_t and the modes are those of `ScheduleFree`. With g the
    gradient at y, every beta a decay factor, and tensors of the parameter's shape::

        diff = g - g_prev                                                   (0 at t = 1)
        v = b2 v + (1 - b2) diff                                            exp_avg_diff
        n = b3 n + (1 - b3) (g + b2 diff)^2                                 exp_avg_sq
        d = [g + b2 v / (1 - b2^t)] / [sqrt(n) / sqrt(1 - b3^t) + eps] + weight_decay y

    This is our definition, from Algorithm 1 of arXiv 2208.06677 (Adan) and of arXiv 2405.15682. What is
    averaged: z, into x. What is preconditioned: the gradient and the mean of its differences, together, and
    both z and y move by that. There is no mean of gradients: the interpolation b1 takes the place of Adan's
    first moment, as it takes that of AdamW's. All bias corrections divide. Weight decay is that of y.

    Call `optimizer.eval()` before evaluation and export, and `optimizer.train()` before training goes on, or
    evaluate within `adan_optim.evaluating(optimizer)`. Checkpoints of Adan cannot be converted: they have no
    z, and their first moment is no mean of parameters.

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: learning rate.
        betas: the interpolation b1, above 0, which must not change during a run, and the decay factors of the
            gradient difference and of the squared Nesterov gradient.
        eps: added to the denominator, after the bias correction.
        weight_decay: decoupled weight decay, of y.
        warmup_steps: steps in which the learning rate grows to lr; without a schedule, give some.
        r: step t has a weight of t^r in the mean.
        weight_lr_power: and of the largest learning rate so far to this power.
        take_gradients: as in `adan_optim.Adan`.
    """

    card = Card(
        name="schedule_free_adan",
        title="Schedule-free Adan",
        source="arXiv 2405.15682, Algorithm 1, with the direction of arXiv 2208.06677",
        when="Adan without a schedule: runs whose end is not known",
        states={
            "z": "z, the point that the steps move",
            "exp_avg_diff": "v, mean of the gradient difference",
            "exp_avg_sq": "n, mean of the squared Nesterov gradient",
            "neg_pre_grad": "minus the previous gradient, as clipped",
        },
        small=SMALL,
        betas=3,
        iterates=("z",),
        nonnegative=("exp_avg_sq",),
        previous="neg_pre_grad",
        options=OPTIONS
        | {"take_gradients": "keep p.grad itself as the previous gradient and leave None in its place"},
        rules=(
            FusedRule(
                "schedule_free_adan",
                ("z", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad"),
                "neg_pre_grad",
                factors=True,
            ),
        ),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Sequence[float] = (0.9, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = None,
        fused: bool | None = None,
        *,
        take_gradients: bool = False,
        **options: Unpack[Options],
    ) -> None:
        hyper = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, train_mode=True)
        hyper |= dict(warmup_steps=warmup_steps, r=r, weight_lr_power=weight_lr_power)
        super().__init__(
            params,
            hyper,
            max_grad_norm=max_grad_norm,
            foreach=foreach,
            fused=fused,
            take_gradients=take_gradients,
            **options,
        )

    def direction(self, g: Tensor, state: State, t: float, group: Group) -> Tensor:
        _, b2, b3 = group["betas"]
        _, v, n, neg_pre_grad = (state[name] for name in self.card.states)
        diff = g + neg_pre_grad if t > 1 else torch.zeros_like(g)
        v.mul_(b2).add_(diff, alpha=1 - b2)
        n.mul_(b3).add_((g + b2 * diff).square(), alpha=1 - b3)
        neg_pre_grad.copy_(g).neg_()
        u: Tensor = g + b2 * v / (1 - b2**t)
        return u.div_(n.sqrt() / math.sqrt(1 - b3**t) + group["eps"])

    def directions(self, g: Tensors, state: States, t: list[float], group: Group) -> Tensors:
        _, b2, b3 = group["betas"]
        _, v, n, neg_pre_grad = (state[name] for name in self.card.states)
        diff = neg_pre_grad  # takes the difference, then g + b2 diff, and in the end minus the gradient
        torch._foreach_add_(diff, g)
        if first := [d for d, ti in zip(diff, t, strict=True) if ti == 1]:
            torch._foreach_zero_(first)
        torch._foreach_lerp_(v, diff, 1 - b2)
        torch._foreach_mul_(diff, b2)
        torch._foreach_add_(diff, g)
        torch._foreach_mul_(n, b3)
        torch._foreach_addcmul_(n, diff, diff, 1 - b3)
        torch._foreach_copy_(neg_pre_grad, g)
        torch._foreach_neg_(neg_pre_grad)
        u = torch._foreach_mul(v, [b2 / (1 - b2**ti) for ti in t])
        torch._foreach_add_(u, g)
        torch._foreach_div_(u, denominators(n, b3, t, group))
        return list(u)
