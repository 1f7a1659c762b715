"""Adan: adaptive Nesterov momentum (arXiv 2208.06677)."""

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
from .engine.storage import State
from .warn import warn


class Adan(Optimizer):
    """Adan, with the arguments of the official package in its order.

    With g the gradient at step t = 1, 2, ... and every beta a decay factor (the paper writes 1 - beta)::

        diff = g - g_prev                                (0 at t = 1)
        m = b1 m + (1 - b1) g                            exp_avg
        v = b2 v + (1 - b2) diff                         exp_avg_diff
        n = b3 n + (1 - b3) (g + b2 diff)^2              exp_avg_sq
        u = [m / (1 - b1^t) + b2 v / (1 - b2^t)] / [sqrt(n) / sqrt(1 - b3^t) + eps]
        p = (p - lr u) / (1 + lr weight_decay)           proximal, the default
        p = (1 - lr weight_decay) p - lr u               no_prox=True, decoupled as in AdamW

    Source: Algorithm 1 of the paper, with the bias corrections and first step of the official code.

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: learning rate; the authors advise 5 to 10 times that of AdamW for training from scratch.
        betas: decay factors of gradient, gradient difference, and squared Nesterov gradient.
        eps: added to the denominator, after the bias correction.
        weight_decay: the authors advise 0.02.
        no_prox: decoupled instead of proximal weight decay.
        take_gradients: the step keeps p.grad itself as the previous gradient, and leaves None: 4 bytes of
            traffic less per parameter, and 4 bytes of memory where the gradients are not needed any more.
    """

    card = Card(
        name="adan",
        title="Adan",
        source="arXiv 2208.06677, Algorithm 1; sail-sg/Adan adan.py",
        when="large learning rates, few epochs: vision transformers, convolutional nets, language models",
        states={
            "exp_avg": "m, mean of the gradient",
            "exp_avg_diff": "v, mean of the gradient difference",
            "exp_avg_sq": "n, mean of the squared Nesterov gradient",
            "neg_pre_grad": "minus the previous gradient, as clipped",
        },
        betas=3,
        nonnegative=("exp_avg_sq",),
        previous="neg_pre_grad",
        options={
            "no_prox": "decoupled weight decay p (1 - lr wd) instead of the proximal p / (1 + lr wd)",
            "take_gradients": "keep p.grad itself as the previous gradient and leave None in its place",
        },
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Sequence[float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        no_prox: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        *,
        take_gradients: bool = False,
        **options: Unpack[Options],
    ) -> None:
        hyper = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, no_prox=no_prox)
        super().__init__(
            params,
            hyper,
            max_grad_norm=max_grad_norm,
            foreach=foreach,
            fused=fused,
            take_gradients=take_gradients,
            **options,
        )

    def check_options(self, group: Group) -> None:
        betas = group["betas"]
        if max(betas) < 0.5:
            warn(
                f"betas={betas} look like the paper's, which are 1 minus the decay factors that go here: "
                f"did you mean {tuple(round(1 - beta, 10) for beta in betas)}?"
            )

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        b1, b2, b3 = group["betas"]
        lr, decay = float(group["lr"]), float(group["lr"]) * group["weight_decay"]
        m, v, n, neg_pre_grad = (state[name] for name in Adan.card.states)
        diff = g + neg_pre_grad if t > 1 else torch.zeros_like(g)
        m.mul_(b1).add_(g, alpha=1 - b1)
        v.mul_(b2).add_(diff, alpha=1 - b2)
        n.mul_(b3).add_((g + b2 * diff).square(), alpha=1 - b3)
        u = m / (1 - b1**t) + b2 * v / (1 - b2**t)
        u /= n.sqrt() / math.sqrt(1 - b3**t) + group["eps"]
        u = cautious(u, g, group)
        if group["no_prox"]:
            p.mul_(1 - decay).sub_(u, alpha=lr)
        else:
            p.sub_(u, alpha=lr).div_(1 + decay)
        neg_pre_grad.copy_(g).neg_()

    def multi_tensor(
        self, p: list[Tensor], g: list[Tensor], state: dict[str, list[Tensor]], t: list[float], group: Group
    ) -> None:
        b1, b2, b3 = group["betas"]
        lr, decay = float(group["lr"]), float(group["lr"]) * group["weight_decay"]
        m, v, n, neg_pre_grad = (state[name] for name in Adan.card.states)
        diff = neg_pre_grad  # takes the difference, then g + b2 diff, and in the end minus the gradient
        torch._foreach_add_(diff, g)
        if first := [d for d, ti in zip(diff, t, strict=True) if ti == 1]:
            torch._foreach_zero_(first)
        torch._foreach_lerp_(m, g, 1 - b1)
        torch._foreach_lerp_(v, diff, 1 - b2)
        torch._foreach_mul_(diff, b2)
        torch._foreach_add_(diff, g)
        torch._foreach_mul_(n, b3)
        torch._foreach_addcmul_(n, diff, diff, 1 - b3)
        denominator = torch._foreach_sqrt(n)
        torch._foreach_div_(denominator, [math.sqrt(1 - b3**ti) for ti in t])
        torch._foreach_add_(denominator, group["eps"])
        if group["no_prox"]:
            torch._foreach_mul_(p, 1 - decay)
        of_m, of_v = [lr / (1 - b1**ti) for ti in t], [lr * b2 / (1 - b2**ti) for ti in t]
        if group["caution"]:
            u = torch._foreach_mul(m, of_m)
            torch._foreach_add_(u, torch._foreach_mul(v, of_v))
            torch._foreach_addcdiv_(p, cautious_many(list(u), g, group), denominator, -1)
        else:
            torch._foreach_addcdiv_(p, m, denominator, [-x for x in of_m])
            torch._foreach_addcdiv_(p, v, denominator, [-x for x in of_v])
        if not group["no_prox"]:
            torch._foreach_div_(p, 1 + decay)
        torch._foreach_copy_(neg_pre_grad, g)
        torch._foreach_neg_(neg_pre_grad)

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        return float(group["lr"]), *group["betas"], group["eps"], group["weight_decay"], group["no_prox"]

    def check_saved_group(self, group: Group) -> None:
        if group.get("caution") and "state_dtype" not in group:
            raise ValueError(
                "a checkpoint of timm's Adan with caution=True: there it masks the first moment, here the "
                "whole step; set it to False in the groups"
            )

    def load_foreign_state(self, state: dict[str, Any]) -> None:
        """The official code kept the previous gradient as `pre_grad` until December 2022, as a taken one is.

        It has none after restart_opt() on a parameter without a state.
        """
        if state.get("step") == 0 and "exp_avg" in state and "pre_grad" not in state:
            state.setdefault("neg_pre_grad", torch.zeros_like(state["exp_avg"]))

    @torch.no_grad()
    def restart_opt(self) -> None:
        """Starts again from the present parameters: step counts and all moments go to zero.

        The difference of the next step is zero, as in a first step. Kahan's compensation and
        the remainder are parts of the parameter and stay. The authors restart after the warm-up and then at
        fixed epochs; most of the published runs do not.
        """
        moments = (*Adan.card.states, "pre_grad")
        names = {"step", *moments, *(f"{name}_scale" for name in moments)}
        for state in self.state.values():
            for name in state.keys() & names:
                state[name].zero_()
