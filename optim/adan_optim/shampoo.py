"""Shampoo (arXiv 1802.09568) in blocks, grafted to AdamW (arXiv 2002.09018, arXiv 2309.06497)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .base import Optimizer, Options
from .card import Card
from .engine.caution import cautious, cautious_many
from .engine.checks import whole_number
from .engine.dtensor import local, share_of, whole
from .engine.matrices import alike, cut, eigh, sides, sides_shape
from .engine.rule import Group
from .engine.storage import State, States, StateSpec, Tensors


class Shampoo(Optimizer):
    """Shampoo, with steps as long as AdamW's.

    With G the gradient of a parameter as a matrix, at step t = 1, 2, ...::

        M = b1 M + (1 - b1) G                                       exp_avg
        v = b2 v + (1 - b2) G^2                                     exp_avg_sq
        A = [M / (1 - b1^t)] / [sqrt(v) / sqrt(1 - b2^t) + eps]     AdamW's step
        L = shampoo_beta L + G G^T,  R = shampoo_beta R + G^T G     factors
        X = (L / |L| + matrix_eps I)^-exponent,  Y likewise of R    inverse_roots, now and then
        P = X M Y
        p = (1 - lr weight_decay) p - lr |A| P / |P|

    |L| is the largest eigenvalue, |A| and |P| are Frobenius norms. Grafting cancels the scales of L, R and M,
    so they need no bias correction, and shampoo_beta < 1 is as good as a mean. A parameter of more than two
    dimensions is the matrix [first, all others]. A side longer than block_size is cut into the fewest parts
    of nearly equal length, and each block m x n is treated as a parameter of its own: G, M, A and P are
    [m, n], L and X [m, m], R and Y [n, n]. Vectors (also matrices of one row or column) and blocks without
    roots take AdamW's step A.

    Roots are computed at step start_preconditioning_step and every precondition_frequency steps from there,
    by eigendecomposition, in float64 where float32 fails. Factors that are zero or not finite keep their
    previous roots. Processes that share a parameter (FSDP2) gather G, M and A, and all compute its roots.

    Source: Algorithm 1 of arXiv 1802.09568 (with shampoo_beta=1 and an absolute matrix_eps); relative
    matrix_eps and schedule: arXiv 2002.09018; blocks and their grafting: arXiv 2309.06497, 3.1 to 3.3.

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: learning rate, as for AdamW.
        betas: decay factors of gradient and, for AdamW's step, squared gradient.
        eps: added to the denominator of AdamW's step, after the bias correction.
        weight_decay: decoupled weight decay.
        shampoo_beta: decay factor of L and R; 1 sums, like the first paper.
        matrix_eps: added to eigenvalues, relative to the largest.
        exponent: 1/4 as in the first paper, or 1/2, see arXiv 2406.17748.
        block_size: longest side of a block; a block of m x n has 2 (m^2 + n^2) numbers of small states.
        precondition_frequency: steps from one computation of the roots to the next.
        start_preconditioning_step: step of the first computation; before it, steps are AdamW's.
    """

    card = Card(
        name="shampoo",
        title="Shampoo",
        source="arXiv 1802.09568, Algorithm 1; arXiv 2002.09018, arXiv 2309.06497",
        when="fewer steps than AdamW for more time and memory in each: large batches, tuned training",
        states={"exp_avg": "M, mean of the gradient", "exp_avg_sq": "v, mean of the squared gradient"},
        small={
            "factors": "L and R of each block, a row of m^2 + n^2 numbers for m x n",
            "inverse_roots": "X and Y, likewise",
        },
        betas=2,
        nonnegative=("exp_avg_sq",),
        elementwise=False,
        options={
            "shampoo_beta": "decay factor of the factors L and R; 1 sums",
            "matrix_eps": "added to the eigenvalues of L and R, relative to the largest",
            "exponent": "the roots are L^-exponent and R^-exponent",
            "block_size": "longer sides of a matrix are cut into parts of at most this length",
            "precondition_frequency": "steps from one computation of the roots to the next",
            "start_preconditioning_step": "step of the first; before it, steps are AdamW's",
        },
        paths=("foreach", "reference"),
        fused_devices=(),
    )

    resizable = False  # factors are sums over all rows

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        max_grad_norm: float = 0.0,
        shampoo_beta: float = 0.999,
        matrix_eps: float = 1e-6,
        exponent: float = 0.25,
        block_size: int = 1024,
        precondition_frequency: int = 20,
        start_preconditioning_step: int = 20,
        foreach: bool | None = None,
        fused: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        hyper = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        hyper |= dict(shampoo_beta=shampoo_beta, matrix_eps=matrix_eps, exponent=exponent)
        hyper |= dict(block_size=block_size, precondition_frequency=precondition_frequency)
        hyper |= dict(start_preconditioning_step=start_preconditioning_step)
        super().__init__(params, hyper, max_grad_norm=max_grad_norm, foreach=foreach, fused=fused, **options)

    def check_options(self, group: Group) -> None:
        if group["shampoo_beta"] > 1:
            raise ValueError(f"shampoo_beta={group['shampoo_beta']}: must be in [0, 1]")
        if group["matrix_eps"] == 0:
            raise ValueError("matrix_eps=0.0: must be above 0, as an eigenvalue of 0 has no inverse root")
        for name in ("block_size", "precondition_frequency", "start_preconditioning_step"):
            whole_number(name, group[name])

    def check_state(self, where: str, p: Tensor, state: State, group: Group) -> None:
        if "factors" in state and state["exp_avg"].shape == p.shape:  # a clearer error than the general one
            sides(local(state["factors"]), p.shape, group["block_size"])
        super().check_state(where, p, state, group)

    def state_spec(self, p: Tensor, group: Group) -> StateSpec:
        shape = sides_shape(p.shape, group["block_size"])
        small = tuple((name, shape) for name in self.card.small if shape[0])
        return StateSpec(tuple(self.card.states), small)

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        b1, b2 = group["betas"]
        lr = float(group["lr"])
        m, v = (state[name] for name in self.card.states)
        m.mul_(b1).add_(g, alpha=1 - b1)
        v.mul_(b2).add_(g.square(), alpha=1 - b2)
        u = m / (1 - b1**t) / (v.sqrt() / math.sqrt(1 - b2**t) + group["eps"])
        if "factors" in state:
            step = torch.empty(p.shape, dtype=g.dtype, device=g.device)
            blocks = (cut(x, group["block_size"]) for x in (*map(whole, (g, m, u)), step))
            pairs = (sides(local(state[name]), p.shape, group["block_size"]) for name in self.card.small)
            for G, M, A, U, factors, roots in zip(*blocks, *pairs, strict=True):
                for factor, root, product in zip(factors, roots, (G @ G.mT, G.mT @ G), strict=True):
                    factor.mul_(group["shampoo_beta"]).add_(product)
                    if is_due(t, group):
                        root.copy_(inverse_root(factor, root, group))
                U.copy_(grafted(roots[0] @ M @ roots[1], A))
            u = share_of(p, step)
        p.mul_(1 - lr * group["weight_decay"]).sub_(cautious(u, g, group), alpha=lr)

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        b1, b2 = group["betas"]
        lr = float(group["lr"])
        m, v = (state[name] for name in self.card.states)
        torch._foreach_lerp_(m, g, 1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, g, g, 1 - b2)
        denominator = torch._foreach_sqrt(v)
        torch._foreach_div_(denominator, [math.sqrt(1 - b2**ti) for ti in t])
        torch._foreach_add_(denominator, group["eps"])
        torch._foreach_mul_(denominator, [1 - b1**ti for ti in t])
        u = list(torch._foreach_div(m, denominator))
        if "factors" in state:
            u = self._steps(g, m, u, state, t, group)
        torch._foreach_mul_(p, 1 - lr * group["weight_decay"])
        torch._foreach_add_(p, cautious_many(u, g, group), alpha=-lr)

    def _steps(
        self, g: Tensors, m: Tensors, a: Tensors, state: States, t: list[float], group: Group
    ) -> Tensors:
        """Update the factors and roots of matrices, with blocks of the same shape stacked.

        Args:
            g, m, a: per parameter G, M and A, each of the parameter's shape.
            state: per parameter the factors and inverse_roots, `matrices.sides_shape` each.
            t: steps, including this one.

        Returns:
            Per parameter the grafted step in place of A, of the parameter's shape.
        """
        size = group["block_size"]
        steps = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in g]
        products, due, directions = [], [], []
        for i, step in enumerate(steps):
            G, M, A, U = (cut(x, size) for x in (g[i], m[i], a[i], step))
            factors, roots = (sides(state[name][i], step.shape, size) for name in self.card.small)
            products += [(block, *pair) for block, pair in zip(G, factors, strict=True)]
            directions += [(*row, *pair) for *row, pair in zip(M, A, U, roots, strict=True)]
            if is_due(t[i], group):
                due += [(pair[k], root[k]) for pair, root in zip(factors, roots, strict=True) for k in (0, 1)]
        for blocks, *factors_of in alike(products):
            x = torch.stack(blocks)
            for factor, product in zip(factors_of, (x @ x.mT, x.mT @ x), strict=True):
                torch._foreach_mul_(factor, group["shampoo_beta"])
                torch._foreach_add_(factor, product.unbind())
        for factor, root in alike(due):
            torch._foreach_copy_(root, inverse_root(torch.stack(factor), torch.stack(root), group).unbind())
        for m_, a_, to, left, right in alike(directions):
            direction = torch.stack(left) @ torch.stack(m_) @ torch.stack(right)
            torch._foreach_copy_(to, grafted(direction, torch.stack(a_)).unbind())
        return steps


def is_due(t: float, group: Group) -> bool:
    """Return whether roots are computed at step t."""
    since = t - group["start_preconditioning_step"]
    return bool(since >= 0 and since % group["precondition_frequency"] == 0)


def inverse_root(factor: Tensor, former: Tensor, group: Group) -> Tensor:
    """Return (L / |L| + matrix_eps I)^-exponent [..., n, n]; the former root where that is not finite.

    Args:
        factor: L, symmetric and positive semi-definite, [..., n, n].
        former: the roots so far, [..., n, n].
        group: matrix_eps and exponent.
    """
    usable = factor.isfinite().all(-1, True).all(-2, True)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    factor = torch.where(usable, factor, identity)
    if (found := eigh(factor)) is None:
        return former
    values, vectors = found
    values = values.clamp(min=0) / values[..., -1:] + group["matrix_eps"]
    root = ((vectors * values[..., None, :] ** -group["exponent"]) @ vectors.mT).to(former.dtype)
    return torch.where(usable & root.isfinite().all(-1, True).all(-2, True), root, former)


def grafted(direction: Tensor, step: Tensor) -> Tensor:
    """Return the direction with the norm of the step; the step where the direction is 0 or not finite.

    All are [..., m, n].
    """
    norm, size = (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) for x in (direction, step))
    return torch.where((norm > 0) & norm.isfinite(), direction * (size / norm), step)
