"""Lion: the sign of an interpolated momentum (arXiv 2302.06675)."""

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


class Lion(Optimizer):
    """Lion, with one state instead of AdamW's two.

    With g the gradient and all tensors of the parameter's shape::

        u = sign(b1 m + (1 - b1) g)
        p = (1 - lr weight_decay) p - lr u
        m = b2 m + (1 - b2) g                                       exp_avg

    Source: Algorithm 2 of the paper. Without decay every element moves by lr, or not at all where the sign's
    argument is 0. The sign of NaN is NaN, not 0 as in `torch.sign`, so that a NaN shows in the parameters.
    Checkpoints of `timm.optim.Lion` and of pytorch_optimizer's, with decoupled decay, load as they are.

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: learning rate; a third to a tenth of AdamW's.
        betas: decay factors of the interpolation in u and of m.
        weight_decay: decoupled weight decay; larger than AdamW's by the factor by which lr is smaller.
    """

    card = Card(
        name="lion",
        title="Lion",
        source="arXiv 2302.06675, Algorithm 2; timm.optim.Lion",
        when="half of AdamW's state, for large batches: vision transformers, language models",
        states={"exp_avg": "m, mean of the gradient"},
        betas=2,
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: Sequence[float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        foreach: bool | None = None,
        fused: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        hyper = dict(lr=lr, betas=betas, weight_decay=weight_decay)
        super().__init__(params, hyper, max_grad_norm=max_grad_norm, foreach=foreach, fused=fused, **options)

    def load_foreign_state(self, state: dict[str, Any]) -> None:
        """timm's has no step count; the rule does not use it."""
        if "exp_avg" in state:
            state.setdefault("step", 0)

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        b1, b2 = group["betas"]
        lr, m = float(group["lr"]), state["exp_avg"]
        u = cautious(_sign(b1 * m + (1 - b1) * g), g, group)
        p.mul_(1 - lr * group["weight_decay"]).sub_(u, alpha=lr)
        m.mul_(b2).add_(g, alpha=1 - b2)

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        b1, b2 = group["betas"]
        lr, m = float(group["lr"]), state["exp_avg"]
        u = cautious_many([_sign(x) for x in torch._foreach_lerp(m, g, 1 - b1)], g, group)
        torch._foreach_mul_(p, 1 - lr * group["weight_decay"])
        torch._foreach_add_(p, u, alpha=-lr)
        torch._foreach_lerp_(m, g, 1 - b2)

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        return float(group["lr"]), *group["betas"], group["weight_decay"]


def _sign(x: Tensor) -> Tensor:
    """The sign of each element, and NaN where it is NaN."""
    return torch.where(x.isnan(), x, x.sign())
