"""Prodigy: AdamW and Adan without a learning rate to choose (arXiv 2306.06101)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .adamw import AdamW
from .adan import Adan
from .base import Optimizer, Options
from .card import Card, FusedRule
from .distance import OPTIONS, SLICES, STATES, DistanceEstimate
from .engine.rule import Group
from .engine.storage import State, States, Tensors

_ADAMW = {name: AdamW.card.states[name] + ", times d" for name in AdamW.card.fused_states}
_ADAN = {name: what + ", times d" * (name != "neg_pre_grad") for name, what in Adan.card.states.items()}


class Prodigy(DistanceEstimate, AdamW):
    """Prodigy: AdamW whose learning rate is lr times an estimate d of the distance to the solution.

    With g the gradient at step t = 1, 2, ..., tensors of the parameter's shape, and d that of this step::

        m = b1 m + (1 - b1) d g                                         exp_avg
        v = b2 v + (1 - b2) d^2 g^2                                     exp_avg_sq
        u = [m / (1 - b1^t)] / [sqrt(v) / sqrt(1 - b2^t) + d eps]
        p = (1 - d lr weight_decay) p - d lr u
        d, s                                                            see `DistanceEstimate`

    Source: Algorithm 4 of the paper, with the options of the authors' package prodigyopt. That takes d eps
    with the next d, and the bias corrections also as a factor on the weight decay. Its checkpoints load.

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: multiplier of d, 1 or a schedule of at most 1; in a group, that of its own steps.
        betas: decay factors of gradient and squared gradient.
        beta3: decay factor of the sums r and s; None is sqrt(betas[1]).
        eps: times d, added to the denominator.
        weight_decay: decoupled weight decay, of a learning rate d lr.
        d0: the first d, which should be too small rather than too large.
        d_coef: factor on the estimate, from 0.5 to 2 as a rule.
        growth_rate: the most by which d grows from step to step, such as 1.02; None is no limit.
        use_bias_correction: False is the paper's algorithm, whose first steps are short, as in a warm-up.
        safeguard_warmup: leaves lr out of s, for schedules that begin near 0.
        slice_p: s and p0 are kept of every slice_p-th element alone: 8 / slice_p bytes a parameter instead of
            8. Not on the fused path, and not for DTensors.
    """

    card = Card(
        name="prodigy",
        title="Prodigy",
        source="arXiv 2306.06101, Algorithm 4; prodigyopt",
        when="no learning rate to tune: fine-tuning, first runs of a new model",
        states={**_ADAMW, **STATES},
        small=SLICES,
        betas=2,
        nonnegative=("exp_avg_sq",),
        state_reads=-1 / 4,  # p0, one of four states, is only read
        options=OPTIONS,
        rules=(FusedRule("prodigy", (*_ADAMW, *STATES), sums=2, unwritten=("p0",)),),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        betas: Sequence[float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        foreach: bool | None = None,
        fused: bool | None = None,
        *,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float | None = None,
        use_bias_correction: bool = True,
        safeguard_warmup: bool = False,
        slice_p: int = 1,
        **options: Unpack[Options],
    ) -> None:
        hyper = dict(
            lr=lr, betas=betas, beta3=beta3, eps=eps, weight_decay=weight_decay, d0=d0, d_coef=d_coef
        )
        hyper |= dict(growth_rate=growth_rate, use_bias_correction=use_bias_correction)
        hyper |= dict(safeguard_warmup=safeguard_warmup, slice_p=slice_p)
        Optimizer.__init__(
            self, params, hyper, max_grad_norm=max_grad_norm, foreach=foreach, fused=fused, **options
        )


class ProdigyAdan(DistanceEstimate, Adan):
    """Prodigy's estimate for Adan: Adan on gradients times d, with the learning rate d lr and d eps.

    With g the gradient at step t = 1, 2, ..., tensors of the parameter's shape, and d that of this step::

        diff = g - g_prev                                (0 at t = 1)
        m = b1 m + (1 - b1) d g                          exp_avg
        v = b2 v + (1 - b2) d diff                       exp_avg_diff
        n = b3 n + (1 - b3) d^2 (g + b2 diff)^2          exp_avg_sq
        u = [m / (1 - b1^t) + b2 v / (1 - b2^t)] / [sqrt(n) / sqrt(1 - b3^t) + d eps]
        p = (p - d lr u) / (1 + d lr weight_decay)       proximal, the default
        d, s                                             see `DistanceEstimate`

    The paper has no such form; this is its derivation. The bound behind the estimate, <g, x - x*> >= f(x) -
    f*, holds for the gradient g at x and for no other vector, so g enters the inner product and s, not Adan's
    g + b2 diff. A constant d cancels in u, whose moments it multiplies, so steps are those of Adan with the
    learning rate d lr; as d grows it weights newer gradients more, as Prodigy does for Adam. Both gradients
    of a difference get the d of this step: otherwise a jump of d would look like one of the gradient.

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr, d0, d_coef, growth_rate, use_bias_correction, safeguard_warmup, slice_p: see `Prodigy`.
        betas, eps, weight_decay, no_prox, take_gradients: see `Adan`; of a learning rate d lr.
        beta3: decay factor of the sums r and s; None is sqrt(betas[2]). Not Adan's third beta.
    """

    card = Card(
        name="prodigy_adan",
        title="Prodigy-Adan",
        source="arXiv 2306.06101, Algorithm 4, on arXiv 2208.06677, Algorithm 1",
        when="Adan without a learning rate to tune",
        states={**_ADAN, **STATES},
        small=SLICES,
        betas=3,
        nonnegative=("exp_avg_sq",),
        previous="neg_pre_grad",
        state_reads=-1 / 6,  # p0, one of six states, is only read
        options={**Adan.card.options, **OPTIONS},
        rules=(
            FusedRule(
                "prodigy_adan",
                (*_ADAN, *STATES),
                previous="neg_pre_grad",
                sums=2,
                unwritten=("p0",),
            ),
        ),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        betas: Sequence[float] = (0.98, 0.92, 0.99),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        no_prox: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        *,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float | None = None,
        use_bias_correction: bool = True,
        safeguard_warmup: bool = False,
        slice_p: int = 1,
        take_gradients: bool = False,
        **options: Unpack[Options],
    ) -> None:
        hyper = dict(lr=lr, betas=betas, beta3=beta3, eps=eps, weight_decay=weight_decay, no_prox=no_prox)
        hyper |= dict(d0=d0, d_coef=d_coef, growth_rate=growth_rate, use_bias_correction=use_bias_correction)
        hyper |= dict(safeguard_warmup=safeguard_warmup, slice_p=slice_p)
        Optimizer.__init__(
            self,
            params,
            hyper,
            max_grad_norm=max_grad_norm,
            foreach=foreach,
            fused=fused,
            take_gradients=take_gradients,
            **options,
        )

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        previous = state["neg_pre_grad"]
        scaled = (previous if t > 1 else -g) * float(group["d"])
        super().single_tensor(p, g, {**state, "neg_pre_grad": scaled}, t, group)
        previous.copy_(g).neg_()

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        previous = state["neg_pre_grad"]
        now = [x if ti > 1 else -y for x, y, ti in zip(previous, g, t, strict=True)]
        scaled = list(torch._foreach_mul(now, float(group["d"])))
        super().multi_tensor(p, g, {**state, "neg_pre_grad": scaled}, t, group)
        torch._foreach_copy_(previous, g)
        torch._foreach_neg_(previous)

    def load_foreign_state(self, state: dict[str, Any]) -> None:
        """Nothing but prodigyopt's form of s and p0: checkpoints of Adan have neither."""
        DistanceEstimate.load_foreign_state(self, state)
