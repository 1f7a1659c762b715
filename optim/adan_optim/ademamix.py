"""AdEMAMix: AdamW with a second, much slower mean of the gradient (arXiv 2409.03137)."""

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
from .engine.checks import whole_number
from .engine.rule import Group
from .engine.storage import State, States, Tensors


class AdEMAMix(Optimizer):
    """AdEMAMix, with the warm-ups of alpha and b3.

    With g the gradient at step t = 1, 2, ... and all tensors of the parameter's shape::

        m1 = b1 m1 + (1 - b1) g                                     exp_avg
        m2 = b3(t) m2 + (1 - b3(t)) g                               exp_avg_slow
        v = b2 v + (1 - b2) g^2                                     exp_avg_sq
        u = [m1 / (1 - b1^t) + alpha(t) m2] / [sqrt(v) / sqrt(1 - b2^t) + eps]
        p = (1 - lr weight_decay) p - lr u

        alpha(t) = alpha min(1, t / alpha_warmup)
        1 / ln b3(t) = (1 - r) / ln b1 + r / ln b3 with r = min(1, t / beta3_warmup), and at most b3

    Source: Algorithm 1 of the paper and its two schedules; that of b3 moves the half-life of m2 from that of
    m1 in a straight line. Checkpoints of the authors' code and of pytorch_optimizer's load.

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: learning rate; as for AdamW.
        betas: decay factors b1, b2 and b3: of gradient, squared gradient, and gradient once more.
        eps: added to the denominator, after the bias correction.
        weight_decay: decoupled weight decay.
        alpha: weight of the slow mean.
        alpha_warmup, beta3_warmup: steps until alpha and b3 are reached; the authors take the number of steps
            of the run, since the slow mean makes early steps unstable. 0 is off.
    """

    card = Card(
        name="ademamix",
        title="AdEMAMix",
        source="arXiv 2409.03137, Algorithm 1",
        when="long runs of language models: gradients of tens of thousands of steps ago still count",
        states={
            "exp_avg": "m1, mean of the gradient",
            "exp_avg_sq": "v, mean of the squared gradient",
            "exp_avg_slow": "m2, slow mean of the gradient",
        },
        betas=3,
        nonnegative=("exp_avg_sq",),
        options={
            "alpha": "weight of the slow mean",
            "alpha_warmup": "steps until alpha is reached; 0 is off",
            "beta3_warmup": "steps until the third beta is reached; 0 is off",
        },
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Sequence[float] = (0.9, 0.999, 0.9999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        alpha: float = 5.0,
        alpha_warmup: int = 0,
        beta3_warmup: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        hyper = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        hyper |= dict(alpha=alpha, alpha_warmup=alpha_warmup, beta3_warmup=beta3_warmup)
        super().__init__(params, hyper, max_grad_norm=max_grad_norm, foreach=foreach, fused=fused, **options)

    def check_options(self, group: Group) -> None:
        for name in ("alpha_warmup", "beta3_warmup"):
            whole_number(name, group[name], 0)

    def load_foreign_state(self, state: dict[str, Any]) -> None:
        """The authors' code calls the first mean exp_avg_fast."""
        if "exp_avg_fast" in state:
            state["exp_avg"] = state.pop("exp_avg_fast")

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        b1, b2, _ = group["betas"]
        lr = float(group["lr"])
        fast, v, slow = (state[name] for name in self.card.states)
        alpha, b3 = warmed_up(t, group)
        fast.mul_(b1).add_(g, alpha=1 - b1)
        slow.mul_(b3).add_(g, alpha=1 - b3)
        v.mul_(b2).add_(g.square(), alpha=1 - b2)
        u = (fast / (1 - b1**t) + alpha * slow) / (v.sqrt() / math.sqrt(1 - b2**t) + group["eps"])
        p.mul_(1 - lr * group["weight_decay"]).sub_(cautious(u, g, group), alpha=lr)

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        b1, b2, _ = group["betas"]
        lr = float(group["lr"])
        fast, v, slow = (state[name] for name in self.card.states)
        alpha, b3 = (list(x) for x in zip(*(warmed_up(ti, group) for ti in t), strict=True))
        torch._foreach_lerp_(fast, g, 1 - b1)
        torch._foreach_mul_(slow, b3)
        torch._foreach_add_(slow, torch._foreach_mul(g, [1 - x for x in b3]))
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, g, g, 1 - b2)
        denominator = torch._foreach_sqrt(v)
        torch._foreach_div_(denominator, [math.sqrt(1 - b2**ti) for ti in t])
        torch._foreach_add_(denominator, group["eps"])
        u = torch._foreach_div(fast, [1 - b1**ti for ti in t])
        torch._foreach_add_(u, torch._foreach_mul(slow, alpha))
        torch._foreach_mul_(p, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(p, cautious_many(list(u), g, group), denominator, -lr)

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        numbers = float(group["lr"]), *group["betas"], group["eps"], group["weight_decay"]
        return *numbers, group["alpha"], group["alpha_warmup"], group["beta3_warmup"]


def warmed_up(t: float, group: Group) -> tuple[float, float]:
    """Return alpha(t) and b3(t)."""
    (b1, _, b3), alpha, steps = group["betas"], group["alpha"], group["alpha_warmup"]
    alpha = alpha * t / steps if t < steps else alpha
    if t >= group["beta3_warmup"] or b3 <= b1:
        return alpha, b3
    part = t / group["beta3_warmup"]
    since = (1 - part) / math.log(b1) if b1 else 0.0
    return alpha, min(b3, math.exp(1 / (since + part / math.log(b3))))
