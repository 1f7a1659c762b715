"""NAdamW: AdamW with Nesterov momentum (Dozat 2016, arXiv 1910.05446)."""

import functools
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
from .engine.storage import State, States, Tensors


class NAdamW(Optimizer):
    """NAdamW, as AlgoPerf's baseline and timm compute it; checkpoints of timm's load.

    With g the gradient at step t = 1, 2, ... and all tensors of the parameter's shape::

        m = b1 m + (1 - b1) g                                       exp_avg
        v = b2 v + (1 - b2) g^2                                     exp_avg_sq
        u = [b1 m + (1 - b1) g] / (1 - b1^t)
        p = (1 - lr weight_decay) p - lr u / [sqrt(v) / sqrt(1 - b2^t) + eps]

    Source: Table 1 of arXiv 1910.05446 (the AlgoPerf benchmark, arXiv 2306.07179, uses it), with decoupled
    weight decay. It is Adan's control: Nesterov momentum without a state for the differences of gradients.

    With momentum_decay, u is Dozat's, with his schedule of the momentum, as in `torch.optim.NAdam`::

        mu_t = b1 (1 - 0.96^(t momentum_decay) / 2)
        u = mu_(t+1) m / (1 - mu_1 ... mu_(t+1)) + (1 - mu_t) g / (1 - mu_1 ... mu_t)

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: learning rate; as for AdamW.
        betas: decay factors of gradient and squared gradient.
        eps: added to the denominator, after the bias correction.
        weight_decay: decoupled weight decay.
        momentum_decay: 0 leaves the momentum at b1; torch's NAdam has 0.004. Not on the fused path.
    """

    card = Card(
        name="nadamw",
        title="NAdamW",
        source="arXiv 1910.05446, Table 1; AlgoPerf's baseline, timm.optim.NAdamW",
        when="AdamW's settings with Nesterov momentum; shows what of Adan's gain is Nesterov's",
        states={"exp_avg": "m, mean of the gradient", "exp_avg_sq": "v, mean of the squared gradient"},
        betas=2,
        nonnegative=("exp_avg_sq",),
        options={
            "momentum_decay": "torch's schedule of the momentum, 0.004 there; foreach and reference only"
        },
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
        momentum_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        hyper = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, momentum_decay=momentum_decay)
        super().__init__(params, hyper, max_grad_norm=max_grad_norm, foreach=foreach, fused=fused, **options)

    def load_foreign_state(self, state: dict[str, Any]) -> None:
        """torch's has the product of the momenta, which follows from the step count."""
        state.pop("mu_product", None)

    def why_not_fused(self, p: Tensor, group: Group) -> str:
        if group["momentum_decay"]:
            return f"{self.card.title} has no fused kernel for momentum_decay={group['momentum_decay']}"
        return super().why_not_fused(p, group)

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        b1, b2 = group["betas"]
        lr = float(group["lr"])
        m, v = state["exp_avg"], state["exp_avg_sq"]
        of_m, of_g = _weights(t, group)
        m.mul_(b1).add_(g, alpha=1 - b1)
        v.mul_(b2).add_(g.square(), alpha=1 - b2)
        u = (of_m * m + of_g * g) / (v.sqrt() / math.sqrt(1 - b2**t) + group["eps"])
        p.mul_(1 - lr * group["weight_decay"]).sub_(cautious(u, g, group), alpha=lr)

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        b1, b2 = group["betas"]
        lr = float(group["lr"])
        m, v = state["exp_avg"], state["exp_avg_sq"]
        of_m, of_g = (list(x) for x in zip(*(_weights(ti, group) for ti in t), strict=True))
        torch._foreach_lerp_(m, g, 1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, g, g, 1 - b2)
        denominator = torch._foreach_sqrt(v)
        torch._foreach_div_(denominator, [math.sqrt(1 - b2**ti) for ti in t])
        torch._foreach_add_(denominator, group["eps"])
        u = torch._foreach_mul(m, of_m)
        torch._foreach_add_(u, torch._foreach_mul(g, of_g))
        torch._foreach_mul_(p, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(p, cautious_many(list(u), g, group), denominator, -lr)

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        return float(group["lr"]), *group["betas"], group["eps"], group["weight_decay"]


def _weights(t: float, group: Group) -> tuple[float, float]:
    """The factors of m and g in u, bias corrections included."""
    b1, decay = group["betas"][0], group["momentum_decay"]
    if not decay:
        return b1 / (1 - b1**t), (1 - b1) / (1 - b1**t)
    now, following = _products(b1, decay, int(t)), _products(b1, decay, int(t) + 1)
    return _momentum(b1, decay, t + 1) / (1 - following), (1 - _momentum(b1, decay, t)) / (1 - now)


def _momentum(b1: float, decay: float, t: float) -> float:
    return float(b1 * (1 - 0.5 * 0.96 ** (t * decay)))


@functools.lru_cache(maxsize=8)
def _known_products(b1: float, decay: float) -> list[float]:
    return [1.0]


def _products(b1: float, decay: float, t: int) -> float:
    """mu_1 ... mu_t."""
    known = _known_products(b1, decay)
    while len(known) <= t:
        known.append(known[-1] * _momentum(b1, decay, len(known)))
    return known[t]
