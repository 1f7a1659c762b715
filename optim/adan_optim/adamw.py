"""AdamW: Adam with decoupled weight decay (arXiv 1711.05101)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .base import Optimizer, Options
from .card import Card
from .engine.caution import cautious, cautious_many
from .engine.rule import Group
from .engine.storage import State, States, StateSpec, Tensors


class AdamW(Optimizer):
    """AdamW, as `torch.optim.AdamW` computes it; it loads that optimizer's checkpoints.

    With g the gradient at step t = 1, 2, ... and all tensors of the parameter's shape::

        m = b1 m + (1 - b1) g                                       exp_avg
        v = b2 v + (1 - b2) g^2                                     exp_avg_sq
        w = max(w, v) with amsgrad, else v                          max_exp_avg_sq
        p = (1 - lr weight_decay) p - lr [m / (1 - b1^t)] / [sqrt(w) / sqrt(1 - b2^t) + eps]

    Source: Algorithm 2 of the paper with a schedule multiplier in lr; amsgrad from arXiv 1904.09237,
    Algorithm 2, as torch has it: the maximum is taken before the bias correction.

    8-bit AdamW is `state_dtype="int8"`: both means in 8-bit codes, block by block.

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: learning rate.
        betas: decay factors of gradient and squared gradient.
        eps: added to the denominator, after the bias correction.
        weight_decay: decoupled weight decay.
        amsgrad: divide by the largest v so far instead of v; not on the fused path.
    """

    card = Card(
        name="adamw",
        title="AdamW",
        source="arXiv 1711.05101, Algorithm 2; torch.optim.AdamW",
        when="the usual choice, and the yardstick for the others",
        states={
            "exp_avg": "m, mean of the gradient",
            "exp_avg_sq": "v, mean of the squared gradient",
            "max_exp_avg_sq": "w, the largest v so far; with amsgrad",
        },
        optional=("max_exp_avg_sq",),
        betas=2,
        nonnegative=("exp_avg_sq", "max_exp_avg_sq"),
        options={"amsgrad": "divide by the largest mean square so far; foreach and reference paths only"},
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        max_grad_norm: float = 0.0,
        foreach: bool | None = None,
        fused: bool | None = None,
        *,
        amsgrad: bool = False,
        **options: Unpack[Options],
    ) -> None:
        hyper = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)
        super().__init__(params, hyper, max_grad_norm=max_grad_norm, foreach=foreach, fused=fused, **options)

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict, with torch's own mark of decoupled weight decay in each group."""
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group["decoupled_weight_decay"] = self.decoupled
        return saved

    def state_spec(self, p: Tensor, group: Group) -> StateSpec:
        return StateSpec(tuple(self.card.states) if group["amsgrad"] else self.card.fused_states)

    def why_not_fused(self, p: Tensor, group: Group) -> str:
        if group["amsgrad"]:
            return f"{self.card.title} has no fused kernel for amsgrad=True"
        return super().why_not_fused(p, group)

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        b1, b2 = group["betas"]
        lr, decay = float(group["lr"]), float(group["weight_decay"])
        m, v = state["exp_avg"], state["exp_avg_sq"]
        if self.decoupled:
            p.mul_(1 - lr * decay)
        else:
            g = g + decay * p
        m.mul_(b1).add_(g, alpha=1 - b1)
        v.mul_(b2).add_(g.square(), alpha=1 - b2)
        if group["amsgrad"]:
            v = torch.maximum(state["max_exp_avg_sq"], v, out=state["max_exp_avg_sq"])
        u = m / (1 - b1**t) / (v.sqrt() / math.sqrt(1 - b2**t) + group["eps"])
        p.sub_(cautious(u, g, group), alpha=lr)

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        b1, b2 = group["betas"]
        lr, decay = float(group["lr"]), float(group["weight_decay"])
        m, v = state["exp_avg"], state["exp_avg_sq"]
        if self.decoupled:
            torch._foreach_mul_(p, 1 - lr * decay)
        elif decay:
            g = list(torch._foreach_add(g, p, alpha=decay))
        torch._foreach_lerp_(m, g, 1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, g, g, 1 - b2)
        if group["amsgrad"]:
            torch._foreach_maximum_(state["max_exp_avg_sq"], v)
            v = state["max_exp_avg_sq"]
        denominator = torch._foreach_sqrt(v)
        torch._foreach_div_(denominator, [math.sqrt(1 - b2**ti) for ti in t])
        torch._foreach_add_(denominator, group["eps"])
        m = cautious_many(m, g, group)
        torch._foreach_addcdiv_(p, m, denominator, [-lr / (1 - b1**ti) for ti in t])

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        return float(group["lr"]), *group["betas"], group["eps"], group["weight_decay"]
