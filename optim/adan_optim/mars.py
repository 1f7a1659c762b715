"""MARS: AdamW on gradients whose variance is reduced by the previous one (arXiv 2411.10438)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .base import Optimizer, Options
from .card import Card, FusedRule
from .engine.caution import cautious, cautious_many
from .engine.fused import set_factors
from .engine.native import Factors
from .engine.rule import Batch, Group
from .engine.storage import State, States, Tensors
from .engine.sums import block_totals


class Mars(Optimizer):
    """MARS-AdamW in its approximate form, which needs one gradient a step; checkpoints of timm's load.

    With g the gradient at step t = 1, 2, ..., tensors of the parameter's shape and norms over one tensor::

        c = g + gamma b1 / (1 - b1) (g - g_prev)                        c = g at t = 1
        c = c / max(1, ||c||)
        m = b1 m + (1 - b1) c                                           exp_avg
        v = b2 v + (1 - b2) c^2                                         exp_avg_sq
        u = [m / (1 - b1^t)] / [sqrt(v) / sqrt(1 - b2^t) + eps]
        p = (1 - lr weight_decay) p - lr u
        g_prev = g                                                      last_grad

    Source: Algorithm 2 of the paper with the previous step's gradient for that of the previous parameters, as
    in the authors' experiments. Parameters of fewer than two dimensions have c = g, which is AdamW.

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: learning rate.
        betas: decay factors of c and of its square.
        eps: added to the denominator, after the bias correction.
        weight_decay: decoupled weight decay.
        gamma: how much of the difference of gradients is added; 0 leaves only the bound on the norm.
        optimize_1d: correct the gradients of parameters of fewer than two dimensions, too.
    """

    card = Card(
        name="mars",
        title="MARS",
        source="arXiv 2411.10438, Algorithm 2; timm.optim.Mars",
        when="language models, instead of AdamW: less noise for one state more",
        states={
            "exp_avg": "m, mean of the corrected gradient",
            "exp_avg_sq": "v, mean of its square",
            "last_grad": "the previous gradient, as clipped",
        },
        betas=2,
        nonnegative=("exp_avg_sq",),
        reads=1,  # the norm of c reads g and the previous gradient, one of three states
        state_reads=1 / 3,
        elementwise=False,
        options={
            "gamma": "how much of the difference of gradients is added",
            "optimize_1d": "correct the gradients of parameters of fewer than two dimensions, too",
        },
        rules=(
            FusedRule(
                "mars_correction", ("last_grad",), sums=1, unread=("param",), unwritten=("param", "states")
            ),
            FusedRule("mars", ("exp_avg", "exp_avg_sq", "last_grad"), factors=True),
        ),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        betas: Sequence[float] = (0.95, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        gamma: float = 0.025,
        optimize_1d: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        hyper = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        hyper |= dict(gamma=gamma, optimize_1d=optimize_1d)
        super().__init__(params, hyper, max_grad_norm=max_grad_norm, foreach=foreach, fused=fused, **options)

    def check_saved_group(self, group: Group) -> None:
        betas = tuple(group["betas"])
        if group.get("mars_type", "adamw") != "adamw" or group.get("lr_1d_factor", 1) != 1:
            raise ValueError("a checkpoint with mars_type or lr_1d_factor: there is no such option here")
        if tuple(group.get("betas_1d") or betas) != betas and not group.get("optimize_1d"):
            raise ValueError(
                f"a checkpoint with betas_1d={group['betas_1d']}: give them a group of their own"
            )

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        b1, b2 = group["betas"]
        lr, c = float(group["lr"]), g
        m, v, last = (state[name] for name in self.card.states)
        if _corrects(p, group):
            c = g + _correction(group) * (g - last) if t > 1 else g
            c = c / c.norm().clamp(min=1)
        m.mul_(b1).add_(c, alpha=1 - b1)
        v.mul_(b2).add_(c.square(), alpha=1 - b2)
        u = m / (1 - b1**t) / (v.sqrt() / math.sqrt(1 - b2**t) + group["eps"])
        p.mul_(1 - lr * group["weight_decay"]).sub_(cautious(u, g, group), alpha=lr)
        last.copy_(g)

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        b1, b2 = group["betas"]
        lr = float(group["lr"])
        m, v, last = (state[name] for name in self.card.states)
        by = [
            _correction(group) if _corrects(pi, group) and ti > 1 else 0.0
            for pi, ti in zip(p, t, strict=True)
        ]
        c = torch._foreach_sub(g, last)
        torch._foreach_mul_(c, by)
        torch._foreach_add_(c, g)
        norms = torch._foreach_norm(c)
        bounds = [
            x.clamp(min=1) if _corrects(pi, group) else torch.ones_like(x)
            for x, pi in zip(norms, p, strict=True)
        ]
        torch._foreach_div_(c, bounds)
        torch._foreach_lerp_(m, c, 1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, c, c, 1 - b2)
        denominator = torch._foreach_sqrt(v)
        torch._foreach_div_(denominator, [math.sqrt(1 - b2**ti) for ti in t])
        torch._foreach_add_(denominator, group["eps"])
        torch._foreach_mul_(p, 1 - lr * group["weight_decay"])
        m = cautious_many(m, g, group)
        torch._foreach_addcdiv_(p, m, denominator, [-lr / (1 - b1**ti) for ti in t])
        torch._foreach_copy_(last, g)

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        numbers = float(group["lr"]), *group["betas"], group["eps"], group["weight_decay"]
        return *numbers, _correction(group)

    def make_factors(self, batch: Batch) -> list[Factors]:
        """Allocate a factor for each parameter; its `decay` is whether the parameter is corrected, 1 or 0."""
        corrects = [float(_corrects(p, batch.group)) for p in batch.params]
        flags = torch.tensor(corrects, dtype=batch.work, device=batch.params[0].device)
        batch.constants["corrects"] = flags
        return [f._replace(decay=flags[i : i + 1]) for i, f in enumerate(super().make_factors(batch))]

    @torch.no_grad()
    def fill_factors(self, batch: Batch, grads: Tensors, scale: float | Tensor) -> None:
        """Compute 1 / max(1, ||c||), from the first pass's sums of c^2."""
        assert batch.block_sums is not None
        (squares,) = block_totals(batch.block_sums, batch.block_counts)
        norms = torch.where(batch.constants["corrects"] > 0, squares.sqrt(), 1.0)
        set_factors(batch, norms.clamp(min=1).reciprocal())


def _corrects(p: Tensor, group: Group) -> bool:
    return p.ndim >= 2 or group["optimize_1d"]


def _correction(group: Group) -> float:
    b1 = group["betas"][0]
    return float(group["gamma"] * b1 / (1 - b1))
