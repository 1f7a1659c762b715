"""LARS: momentum SGD with each tensor's step scaled to the norm of the tensor (arXiv 1708.03888)."""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .base import Optimizer, Options
from .card import Card, FusedRule
from .engine.caution import cautious, cautious_many
from .engine.fused import exact_params, set_factors
from .engine.rule import Batch, Group
from .engine.storage import State, States, StateSpec, Tensors
from .engine.sums import sums_of


class Lars(Optimizer):
    """LARS, for large batches.

    With g the gradient, all tensors of the parameter's shape and norms over one tensor::

        rate = trust_coefficient ||p|| / (||g|| + weight_decay ||p|| + eps)      1 where a norm is 0
        v = momentum v + rate (g + weight_decay p)                               momentum_buffer
        p = p - lr v

    Source: equation 6 and Algorithm 1 of the paper, with lr outside v as in torch's SGD, apex and timm. For
    a constant lr that is the same; outside, a schedule scales the whole step at once.

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: learning rate; of the order of 10 for the largest batches, where trust_coefficient is 0.001.
        momentum: decay factor of v, in [0, 1); with 0 there is no state.
        eps: added to the denominator of the rate.
        weight_decay: added to the gradient, as in SGD.
        trust_coefficient: the paper's eta, "how much a layer may be trusted to change".
        nesterov: the step is lr [rate (g + weight_decay p) + momentum v].
        trust_clip: LARC: min(rate / lr, 1) in place of rate, so that lr bounds the step.
        always_adapt: also scale groups without weight decay. By default their rate is 1, as in timm: the
            published runs leave biases and norms, which do not decay, to plain SGD.
    """

    card = Card(
        name="lars",
        title="LARS",
        source="arXiv 1708.03888, equation 6 and Algorithm 1",
        when="large batches, from thousands on: convolutional nets",
        states={"momentum_buffer": "v, momentum"},
        betas=0,
        optional=("momentum_buffer",),
        reads=2,  # the norms read p and g
        elementwise=False,
        options={
            "momentum": "decay factor of the momentum; 0 keeps no state",
            "trust_coefficient": "the part of its norm by which a tensor may move, per lr",
            "nesterov": "Nesterov momentum",
            "trust_clip": "LARC: lr is a bound, and the rate only makes a step smaller",
            "always_adapt": "True scales steps in groups without weight decay, too",
        },
        rules=(
            FusedRule("lars", ("momentum_buffer",), factors=True),
            FusedRule("lars_plain", (), factors=True),
        ),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        trust_coefficient: float = 1e-3,
        nesterov: bool = False,
        trust_clip: bool = False,
        always_adapt: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        hyper = dict(lr=lr, momentum=momentum, eps=eps, weight_decay=weight_decay)
        hyper |= dict(trust_coefficient=trust_coefficient, nesterov=nesterov)
        hyper |= dict(trust_clip=trust_clip, always_adapt=always_adapt)
        super().__init__(params, hyper, max_grad_norm=max_grad_norm, foreach=foreach, fused=fused, **options)

    def check_options(self, group: Group) -> None:
        if group["momentum"] >= 1:
            raise ValueError(f"momentum={group['momentum']}: must be in [0, 1)")
        if group["nesterov"] and not group["momentum"]:
            raise ValueError("nesterov=True needs a momentum above 0")
        if group["caution"] and not group["momentum"]:
            raise ValueError("caution=True needs a momentum above 0")

    def state_spec(self, p: Tensor, group: Group) -> StateSpec:
        return StateSpec(("momentum_buffer",) if group["momentum"] else ())

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        momentum = group["momentum"]
        u = decayed = g + group["weight_decay"] * p
        if _adapts(group):
            u = u * _rate(p.norm(), g.norm(), group)
        if momentum:
            v = state["momentum_buffer"].mul_(momentum).add_(u)
            u = u + momentum * v if group["nesterov"] else v
        p.sub_(cautious(u, decayed, group), alpha=float(group["lr"]))

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        momentum = group["momentum"]
        decayed = list(torch._foreach_add(g, p, alpha=group["weight_decay"])) if group["weight_decay"] else g
        u = tuple(decayed)
        if _adapts(group):
            p_norm, g_norm = (torch.stack(torch._foreach_norm(x)) for x in (p, g))
            u = torch._foreach_mul(u, _rate(p_norm, g_norm, group).unbind())
        if momentum:
            v = state["momentum_buffer"]
            torch._foreach_mul_(v, momentum)
            torch._foreach_add_(v, u)
            u = torch._foreach_add(u, v, alpha=momentum) if group["nesterov"] else tuple(v)
        torch._foreach_add_(p, cautious_many(list(u), decayed, group), alpha=-float(group["lr"]))

    def fused_rules(self, spec: StateSpec) -> tuple[FusedRule, ...]:
        return (self.card.rules[0 if spec.full else 1],)

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        return float(group["lr"]), group["momentum"], group["weight_decay"], group["nesterov"]

    @torch.no_grad()
    def fill_factors(self, batch: Batch, grads: Tensors, scale: float | Tensor) -> None:
        if _adapts(batch.group):
            tensors = {"params": exact_params(batch), "grads": grads}
            if not batch.sums:
                whole, p = [(1, g.numel()) for g in grads], batch.params[0]
                batch.sums = {name: sums_of(p, x[0].dtype, whole) for name, x in tensors.items()}
            p_norm, g_norm = (batch.sums[name].rows(x).sqrt() for name, x in tensors.items())
            set_factors(batch, _rate(p_norm, (g_norm * scale).abs(), batch.group))
        else:
            set_factors(batch, torch.ones(len(grads), dtype=torch.float64, device=grads[0].device))


def _adapts(group: Group) -> bool:
    return bool(group["always_adapt"] or group["weight_decay"] > 0)


def _rate(p_norm: Tensor, g_norm: Tensor, group: Group) -> Tensor:
    """The paper's local learning rates for norms of any one shape; 1 where either norm is 0."""
    rate = group["trust_coefficient"] * p_norm / (g_norm + group["weight_decay"] * p_norm + group["eps"])
    rate = torch.where((p_norm == 0) | (g_norm == 0), 1.0, rate)
    lr = max(float(group["lr"]), 1e-30)  # a schedule's lr of 0 must not give 0 / 0
    return (rate / lr).clamp(max=1) if group["trust_clip"] else rate
