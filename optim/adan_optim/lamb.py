"""LAMB: Adam with each tensor's step scaled to the norm of the tensor (arXiv 1904.00962)."""

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
from .engine.rule import Batch, Group
from .engine.storage import State, States, Tensors
from .engine.sums import block_totals

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Lamb(Optimizer):
    """LAMB, for large batches.

    With g the gradient at step t = 1, 2, ..., tensors of the parameter's shape and norms over one tensor::

        m = b1 m + (1 - b1) g                                           exp_avg
        v = b2 v + (1 - b2) g^2                                         exp_avg_sq
        u = [m / (1 - b1^t)] / [sqrt(v / (1 - b2^t)) + eps] + weight_decay p
        p = p - lr (||p|| / ||u||) u                                    ratio 1 where a norm is 0

    Source: Algorithm 2 of the paper with phi(z) = z. Its BERT runs warm up, scale lr with the square root of
    the batch size, and use weight_decay 0.01.

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: learning rate: the fraction of its norm by which a tensor moves in a step.
        betas: decay factors of gradient and squared gradient.
        eps: added to the denominator, after the bias correction.
        weight_decay: part of the update, so ||u|| includes it.
        max_grad_norm: apex and timm clip to 1 by default; the paper does not clip, and neither does this.
        bias_correction: False leaves out both corrections, like the authors' own code; a warm-up has much
            the same effect.
        trust_clip: ratios of at most 1 (LAMBC): a tensor's step is never scaled up.
        always_adapt: False uses the ratio 1 in groups without weight decay (usually biases and norms), like
            the authors' code and timm.
    """

    card = Card(
        name="lamb",
        title="LAMB",
        source="arXiv 1904.00962, Algorithm 2",
        when="large batches, from thousands on: transformers",
        states={"exp_avg": "m, mean of the gradient", "exp_avg_sq": "v, mean of the squared gradient"},
        betas=2,
        nonnegative=("exp_avg_sq",),
        reads=1,  # the first pass reads p, g and the states and writes these, the second reads p and them
        state_reads=1,
        elementwise=False,
        options={
            "bias_correction": "False leaves out Adam's bias corrections, as the authors' code does",
            "trust_clip": "a tensor's step is never scaled up: ratios of at most 1",
            "always_adapt": "False does not scale steps in groups without weight decay",
        },
        rules=(
            FusedRule("lamb_moments", _MOMENTS, sums=2, small=False, unwritten=("param",)),
            FusedRule("lamb", _MOMENTS, factors=True, small=False, unread=("grad",), unwritten=("states",)),
        ),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        max_grad_norm: float = 0.0,
        bias_correction: bool = True,
        trust_clip: bool = False,
        always_adapt: bool = True,
        foreach: bool | None = None,
        fused: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        hyper = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        hyper |= dict(bias_correction=bias_correction, trust_clip=trust_clip, always_adapt=always_adapt)
        super().__init__(params, hyper, max_grad_norm=max_grad_norm, foreach=foreach, fused=fused, **options)

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        b1, b2 = group["betas"]
        m, v = (state[name] for name in self.card.states)
        correction1, correction2 = _corrections(t, group)
        m.mul_(b1).add_(g, alpha=1 - b1)
        v.mul_(b2).add_(g.square(), alpha=1 - b2)
        u = m / correction1 / ((v / correction2).sqrt() + group["eps"])
        u = cautious(u, g, group) + group["weight_decay"] * p
        if _adapts(group):
            u *= _ratio(p.norm(), u.norm(), group)
        p.sub_(u, alpha=float(group["lr"]))

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        b1, b2 = group["betas"]
        lr = float(group["lr"])
        m, v = (state[name] for name in self.card.states)
        corrections = [_corrections(ti, group) for ti in t]
        torch._foreach_lerp_(m, g, 1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, g, g, 1 - b2)
        denominator = torch._foreach_sqrt(v)  # will include the correction of m
        torch._foreach_mul_(denominator, [c1 / math.sqrt(c2) for c1, c2 in corrections])
        torch._foreach_add_(denominator, [c1 * group["eps"] for c1, _ in corrections])
        u = cautious_many(list(torch._foreach_div(m, denominator)), g, group)
        if group["weight_decay"]:
            torch._foreach_add_(u, p, alpha=group["weight_decay"])
        if _adapts(group):
            p_norm, u_norm = (torch.stack(torch._foreach_norm(x)) for x in (p, u))
            torch._foreach_addcmul_(p, u, (_ratio(p_norm, u_norm, group) * -lr).unbind())
        else:
            torch._foreach_add_(p, u, alpha=-lr)

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        numbers = float(group["lr"]), *group["betas"], group["eps"], group["weight_decay"]
        return *numbers, group["bias_correction"]

    @torch.no_grad()
    def fill_factors(self, batch: Batch, grads: Tensors, scale: float | Tensor) -> None:
        """Compute lr times the trust ratios, from the first pass's sums of u^2 and p^2."""
        if _adapts(batch.group):
            assert batch.block_sums is not None
            u_norm, p_norm = (x.sqrt() for x in block_totals(batch.block_sums, batch.block_counts))
            ratios = _ratio(p_norm, u_norm, batch.group)
        else:
            ratios = torch.ones(len(batch.params), dtype=torch.float64, device=batch.params[0].device)
        set_factors(batch, ratios * batch.group["lr"])


def _corrections(t: float, group: Group) -> tuple[float, float]:
    """The bias corrections of m and v."""
    b1, b2 = group["betas"]
    return (1 - b1**t, 1 - b2**t) if group["bias_correction"] else (1.0, 1.0)


def _adapts(group: Group) -> bool:
    return bool(group["always_adapt"] or group["weight_decay"] > 0)


def _ratio(p_norm: Tensor, u_norm: Tensor, group: Group) -> Tensor:
    """The trust ratios for norms of any one shape; 1 where either norm is 0."""
    ratio = torch.where((p_norm == 0) | (u_norm == 0), 1.0, p_norm / u_norm)
    return ratio.clamp(max=1) if group["trust_clip"] else ratio
