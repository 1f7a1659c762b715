"""Sophia: clipped steps, preconditioned by an estimate of the Hessian's diagonal (arXiv 2305.14342)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .base import Optimizer, Options
from .card import Card
from .engine import storage
from .engine.caution import cautious, cautious_many
from .engine.dtensor import is_dtensor, local
from .engine.plan import path_of
from .engine.rule import Group
from .engine.storage import State, States, Storage, Tensors


class Sophia(Optimizer):
    """Sophia; the estimator that it is given makes it Sophia-G or Sophia-H.

    With g the gradient at step t = 1, 2, ... and all tensors of the parameter's shape::

        m = b1 m + (1 - b1) g                                       exp_avg
        u = clip(m / max(rho h, eps), -1, 1)
        p = (1 - lr weight_decay) p - lr u

    and every k steps, with an estimate of the Hessian's diagonal, in `update_hessian`::

        h = b2 h + (1 - b2) estimate                                hessian

    Before the first estimate h is 0, and a step is lr times the sign of m. A training loop (k = 10 in the
    paper)::

        loss(model(x), y).backward()
        if step % 10 == 0:
            optimizer.update_hessian(gauss_newton_bartlett(model(x), params))       # Sophia-G
            optimizer.update_hessian(hutchinson(loss(model(x), y), params))         # or Sophia-H
        optimizer.step()

    Source: Algorithm 3 of the paper; its gamma is called rho here, as in the official code. That code has
    |m| / (rho bs h + 1e-15) instead of m / max(rho h, eps), where bs is the number of labels in a batch; here
    the estimate includes bs.

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: learning rate, the largest change of an element in a step; the authors advise a little less than
            AdamW's.
        betas: decay factors of the gradient and of the estimates.
        rho: a larger value clips fewer elements; the authors advise leaving 10 to 50 % unclipped: 0.02 to
            0.05 for Sophia-G, 0.01 for Sophia-H.
        eps: lower bound on the denominator.
        weight_decay: decoupled weight decay.
    """

    card = Card(
        name="sophia",
        title="Sophia",
        source="arXiv 2305.14342, Algorithm 3",
        when="language models; the training loop has to give it estimates of the Hessian",
        states={
            "exp_avg": "m, mean of the gradient",
            "hessian": "h, mean of the estimates of the Hessian's diagonal",
        },
        betas=2,
        options={"rho": "factor of the Hessian in the denominator (gamma of the paper)"},
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: Sequence[float] = (0.965, 0.99),
        rho: float = 0.04,
        eps: float = 1e-12,
        weight_decay: float = 0.1,
        max_grad_norm: float = 0.0,
        foreach: bool | None = None,
        fused: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        hyper = dict(lr=lr, betas=betas, rho=rho, eps=eps, weight_decay=weight_decay)
        super().__init__(params, hyper, max_grad_norm=max_grad_norm, foreach=foreach, fused=fused, **options)

    @torch.no_grad()
    def update_hessian(self, estimates: Mapping[Tensor, Tensor]) -> None:
        """Update the running means of the Hessian's diagonal with new estimates.

        Args:
            estimates: by parameter, a tensor of its shape, for the loss that is minimised (without a
                GradScaler's factor). The means of other parameters stay as they are.

        Raises:
            ValueError: for an estimate of the wrong shape, or for a tensor that is not a parameter of this
                optimizer; nothing is changed then.
        """
        owners = [(p, group) for group in self.param_groups for p in group["params"] if p in estimates]
        if len(owners) < len(estimates):
            counts = f"{len(estimates) - len(owners)} of {len(estimates)}"
            raise ValueError(f"{counts} estimates are not for parameters of this optimizer")
        for p, _ in owners:
            if estimates[p].shape != p.shape:
                shapes = f"shape {tuple(estimates[p].shape)} for a parameter of shape {tuple(p.shape)}"
                raise ValueError(f"an estimate of the Hessian's diagonal has {shapes}")
        for p, group in owners:
            state: State = self.state[p]
            estimate: Any = estimates[p]
            stored = Storage.of(p, group, taken=False)
            on_device = path_of(self, p, group) == "fused"
            stored.fit(self.card, self.state_spec(p, group), p, state, p.device if on_device else "cpu")
            if is_dtensor(estimate):
                estimate = estimate.redistribute(p.device_mesh, p.placements)
            mine = {name: local(x) for name, x in state.items()}
            work = torch.promote_types(p.dtype, torch.float32)
            h = storage.load(mine, "hessian", signed=True).to(work)
            h.lerp_(local(estimate).to(h), 1 - group["betas"][1])
            small = stored.state in ("bfloat16", "int8")
            words = storage.noise(int(state["step"]), h.numel(), h.device) if small else None
            slot = list(self.card.states).index("hessian")
            storage.store(mine, "hessian", slot, h, signed=True, words=words)

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        b1, _ = group["betas"]
        lr = float(group["lr"])
        m, h = state["exp_avg"], state["hessian"]
        m.mul_(b1).add_(g, alpha=1 - b1)
        u = (m / (group["rho"] * h).clamp(min=group["eps"])).clamp(-1, 1)
        u = cautious(u, g, group)
        p.mul_(1 - lr * group["weight_decay"]).sub_(u, alpha=lr)

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        b1, _ = group["betas"]
        lr = float(group["lr"])
        m, h = state["exp_avg"], state["hessian"]
        torch._foreach_lerp_(m, g, 1 - b1)
        denominator = torch._foreach_mul(h, group["rho"])
        torch._foreach_clamp_min_(denominator, group["eps"])
        u = list(torch._foreach_div(m, denominator))
        torch._foreach_clamp_min_(u, -1.0)
        torch._foreach_clamp_max_(u, 1.0)
        u = cautious_many(u, g, group)
        torch._foreach_mul_(p, 1 - lr * group["weight_decay"])
        torch._foreach_add_(p, u, alpha=-lr)

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        return float(group["lr"]), group["betas"][0], group["rho"], group["eps"], group["weight_decay"]


def gauss_newton_bartlett(
    logits: Tensor, params: Iterable[Tensor], generator: torch.Generator | None = None
) -> dict[Tensor, Tensor]:
    """Estimate the diagonal of the Gauss-Newton matrix of a mean cross entropy, for Sophia-G.

    Labels are drawn from the model's own distribution; with g the gradient of the mean cross entropy of B
    such labels, B g^2 is an unbiased estimate. `.grad` is left alone.

    Args:
        logits: the model's output [..., classes] with its graph, which is freed; B is the number of rows.
        params: the parameters to estimate for; they are not updated.
        generator: random generator on the device of the logits.

    Returns:
        For each parameter that the logits depend on, a tensor of its shape, >= 0; float32, or float64 for
        float64 parameters.

    Source: Algorithm 2 of the paper.
    """
    rows = logits.flatten(0, -2)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    labels = torch.multinomial(rows.detach().softmax(-1), 1, generator=generator).squeeze(1)
    params = list(params)
    grads = torch.autograd.grad(F.cross_entropy(rows, labels), params, allow_unused=True)
    return {p: len(rows) * _wide(g).square() for p, g in zip(params, grads, strict=True) if g is not None}


def hutchinson(
    loss: Tensor, params: Iterable[Tensor], generator: torch.Generator | None = None
) -> dict[Tensor, Tensor]:
    """Estimate the Hessian's diagonal of any loss, without bias and with either sign, for Sophia-H.

    The estimate is u * (H u) with u from N(0, I). It differentiates a gradient, which costs about two
    backward passes. `.grad` is left alone.

    Args:
        loss: a scalar with its graph, which is freed. All of its operations need a second derivative
            (attention has one only with torch's SDPBackend.MATH).
        params: the parameters to estimate for; they are not updated.
        generator: random generator on the device of the parameters.

    Returns:
        For each parameter that the loss depends on, a tensor of its shape; float32, or float64 for float64
        parameters.

    Source: Algorithm 1 of the paper.
    """
    params = list(params)
    grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    used = [(p, g) for p, g in zip(params, grads, strict=True) if g is not None]
    noise = [torch.randn(g.shape, generator=generator, device=g.device, dtype=g.dtype) for _, g in used]
    curved = [(g, u) for (_, g), u in zip(used, noise, strict=True) if g.requires_grad]
    products: Sequence[Tensor | None] = [None] * len(used)  # where the gradient is constant
    if curved:
        outputs, weights = zip(*curved, strict=True)
        products = torch.autograd.grad(outputs, [p for p, _ in used], weights, allow_unused=True)
    return {
        p: torch.zeros_like(_wide(u)) if hu is None else _wide(u) * _wide(hu)
        for (p, _), u, hu in zip(used, noise, products, strict=True)
    }


def _wide(x: Tensor) -> Tensor:
    """The same numbers in the dtype of the arithmetic, without a graph."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))
