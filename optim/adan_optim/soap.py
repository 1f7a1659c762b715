"""SOAP: Adam in the eigenbasis of Shampoo's factors (arXiv 2409.11321)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .adamw import AdamW
from .base import Optimizer, Options
from .card import Card
from .engine.caution import cautious, cautious_many
from .engine.checks import whole_number
from .engine.dtensor import local, share_of, whole
from .engine.matrices import alike, cut, eigh, sides, sides_shape
from .engine.rule import Group
from .engine.storage import State, States, StateSpec, Tensors

Pairs = list[tuple[Tensor, Tensor]]  # two matrices for each block of a parameter
ADAMW = AdamW.__new__(AdamW)  # for its rule alone: without parameters


class Soap(Optimizer):
    """SOAP, which is AdamW in a basis that turns with the gradients.

    With G the gradient of a parameter as a matrix, at step t = 2, 3, ...::

        G' = QL^T G QR                                              QL and QR: eigenbases
        M = b1 M + (1 - b1) G'                                      exp_avg
        v = b2 v + (1 - b2) G'^2                                    exp_avg_sq
        u = [M / (1 - b1^(t - 1))] / [sqrt(v) / sqrt(1 - b2^(t - 1)) + eps]
        p = (1 - lr weight_decay) p - lr QL u QR^T
        L = shampoo_beta L + (1 - shampoo_beta) G G^T,  R likewise of G^T G      factors

    The first gradient makes only L and R, and QL and QR of their eigenvectors: a step in the basis of that
    very gradient would be one of rounding. Every precondition_frequency steps from there, after the step, QL
    becomes the orthogonal factor of the QR decomposition of L QL, with the columns of QL in falling order of
    diag(QL^T L QL): a step of the power iteration. v takes that order, and M is turned into the new basis.
    QR likewise.

    Blocks, vectors and processes that share a parameter are as for `Shampoo`; vectors take AdamW's step.

    Source: Algorithms 3 and 4 of the paper, with the first step and the order of the authors' code. M is kept
    in the eigenbasis, which gives the same steps without turning it in each.

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: learning rate, as for AdamW.
        betas: decay factors of gradient and squared gradient.
        eps: added to the denominator, after the bias correction.
        weight_decay: decoupled weight decay.
        shampoo_beta: decay factor of L and R.
        matrix_eps: added to L over its trace, as a diagonal from 2 to 1 times it, so that directions without
            a gradient have a basis and an order.
        block_size: longest side of a block; a block of m x n has 2 (m^2 + n^2) numbers of small states.
        precondition_frequency: steps from one change of the basis to the next.
    """

    card = Card(
        name="soap",
        title="SOAP",
        source="arXiv 2409.11321, Algorithms 3 and 4",
        when="fewer steps than AdamW for more time and memory in each: language models",
        states={
            "exp_avg": "M, mean of the gradient in the eigenbasis",
            "exp_avg_sq": "v, mean of its square",
        },
        small={
            "factors": "L and R of each block, a row of m^2 + n^2 numbers for m x n",
            "eigenbases": "QL and QR, likewise",
        },
        betas=2,
        nonnegative=("exp_avg_sq",),
        elementwise=False,
        options={
            "shampoo_beta": "decay factor of the factors L and R",
            "matrix_eps": "added to the diagonals of L and R, relative to their traces",
            "block_size": "longer sides of a matrix are cut into parts of at most this length",
            "precondition_frequency": "steps from one change of the basis to the next",
        },
        paths=("foreach", "reference"),
        fused_devices=(),
    )

    resizable = False  # factors are sums over all rows

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        betas: Sequence[float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        max_grad_norm: float = 0.0,
        shampoo_beta: float = 0.95,
        matrix_eps: float = 1e-6,
        block_size: int = 1024,
        precondition_frequency: int = 10,
        foreach: bool | None = None,
        fused: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        hyper = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, shampoo_beta=shampoo_beta)
        hyper |= dict(matrix_eps=matrix_eps, block_size=block_size)
        hyper |= dict(precondition_frequency=precondition_frequency)
        super().__init__(params, hyper, max_grad_norm=max_grad_norm, foreach=foreach, fused=fused, **options)

    def check_options(self, group: Group) -> None:
        if group["shampoo_beta"] >= 1:
            raise ValueError(f"shampoo_beta={group['shampoo_beta']}: must be in [0, 1)")
        for name in ("block_size", "precondition_frequency"):
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
        if "factors" not in state:
            ADAMW.single_tensor(p, g, state, t, {**group, "amsgrad": False})
            return
        b1, b2 = group["betas"]
        lr, size, m, v = float(group["lr"]), group["block_size"], state["exp_avg"], state["exp_avg_sq"]
        factors, bases = (sides(local(state[name]), p.shape, size) for name in self.card.small)
        gradient = whole(g)
        if t > 1:
            turned = share_of(p, _turned(gradient, bases, size))
            m.mul_(b1).add_(turned, alpha=1 - b1)
            v.mul_(b2).add_(turned.square(), alpha=1 - b2)
            u = m / (1 - b1 ** (t - 1)) / (v.sqrt() / math.sqrt(1 - b2 ** (t - 1)) + group["eps"])
            u = share_of(p, _turned(whole(u), [(left.mT, right.mT) for left, right in bases], size))
            p.mul_(1 - lr * group["weight_decay"]).sub_(cautious(u, g, group), alpha=lr)
        for G, pair in zip(cut(gradient, size), factors, strict=True):
            for factor, product in zip(pair, (G @ G.mT, G.mT @ G), strict=True):
                factor.mul_(group["shampoo_beta"]).add_(product, alpha=1 - group["shampoo_beta"])
        if is_due(t, group):
            means, squares = (whole(x).clone(memory_format=torch.contiguous_format) for x in (m, v))
            for M, V, pair, basis in zip(cut(means, size), cut(squares, size), factors, bases, strict=True):
                renew([[x] for x in (M, V, *pair, *basis)], t == 1, group)
            m.copy_(share_of(p, means))
            v.copy_(share_of(p, squares))

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        if "factors" not in state:
            ADAMW.multi_tensor(p, g, state, t, {**group, "amsgrad": False})
            return
        size = group["block_size"]
        factors, bases = (
            [sides(rows, pi.shape, size) for rows, pi in zip(state[name], p, strict=True)]
            for name in self.card.small
        )
        if moving := [i for i, ti in enumerate(t) if ti > 1]:
            moments = {name: [state[name][i] for i in moving] for name in self.card.states}
            each = [(p[i], g[i], bases[i], t[i]) for i in moving]
            self._move(each, moments, group)
        products = [
            (block, *pair)
            for gi, pairs in zip(g, factors, strict=True)
            for block, pair in zip(cut(gi, size), pairs, strict=True)
        ]
        for blocks, *factors_of in alike(products):
            x = torch.stack(blocks)
            for factor, product in zip(factors_of, (x @ x.mT, x.mT @ x), strict=True):
                torch._foreach_lerp_(factor, product.unbind(), 1 - group["shampoo_beta"])
        for first in (True, False):
            due = [i for i, ti in enumerate(t) if is_due(ti, group) and first == (ti == 1)]
            kept = [x[i] for x in (state["exp_avg"], state["exp_avg_sq"]) for i in due]
            turned = [x.contiguous() for x in kept]  # whose blocks are views
            rows = []
            for k, i in enumerate(due):
                M, V = (cut(x, size) for x in (turned[k], turned[k + len(due)]))
                blocks_of = zip(M, V, factors[i], bases[i], strict=True)
                rows += [(mean, square, *pair, *basis) for mean, square, pair, basis in blocks_of]
            for columns in alike(rows):
                renew(columns, first, group)
            if kept:
                torch._foreach_copy_(kept, turned)

    def _move(self, moving: list[tuple[Tensor, Tensor, Pairs, float]], state: States, group: Group) -> None:
        """Update M and v, and with them the parameters.

        Args:
            moving: parameters and gradients, of any shapes, the bases of their blocks, and their steps.
            state: M and v, of the parameters' shapes.
            group: lr, betas, eps, weight_decay and block_size.
        """
        p, g, bases, t = (list(x) for x in zip(*moving, strict=True))
        b1, b2 = group["betas"]
        lr, size, (m, v) = float(group["lr"]), group["block_size"], state.values()
        turned = _turned_many(g, bases, size)
        torch._foreach_lerp_(m, turned, 1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, turned, turned, 1 - b2)
        denominator = torch._foreach_sqrt(v)
        torch._foreach_div_(denominator, [math.sqrt(1 - b2 ** (ti - 1)) for ti in t])
        torch._foreach_add_(denominator, group["eps"])
        torch._foreach_mul_(denominator, [1 - b1 ** (ti - 1) for ti in t])
        u = list(torch._foreach_div(m, denominator))
        back = [[(left.mT, right.mT) for left, right in pairs] for pairs in bases]
        torch._foreach_mul_(p, 1 - lr * group["weight_decay"])
        torch._foreach_add_(p, cautious_many(_turned_many(u, back, size), g, group), alpha=-lr)


def is_due(t: float, group: Group) -> bool:
    """Return whether the bases change at step t."""
    return bool((t - 1) % group["precondition_frequency"] == 0)


def renew(columns: Sequence[Sequence[Tensor]], first: bool, group: Group) -> None:
    """Change the bases of blocks of one shape, in place, and M and v with them.

    Args:
        columns: of each block M and v [m, n], L [m, m] and R [n, n], QL [m, m] and QR [n, n].
        first: whether these are the first bases, which are eigenvectors.
        group: matrix_eps.
    """
    means, squares, left, right, left_basis, right_basis = map(list, columns)
    m, v, find = torch.stack(means), torch.stack(squares), eigenvectors if first else power_iteration
    turns = []
    for dim, factor, basis in ((-2, left, left_basis), (-1, right, right_basis)):
        old = torch.stack(basis)
        new, order = find(torch.stack(factor), old, group["matrix_eps"])
        v = v.gather(dim, order.unsqueeze(-3 - dim).expand_as(v))
        turns.append((old, new))
        torch._foreach_copy_(basis, new.unbind())
    (old_left, new_left), (old_right, new_right) = turns
    m = new_left.mT @ (old_left @ m @ old_right.mT) @ new_right
    torch._foreach_copy_(means, m.unbind())
    torch._foreach_copy_(squares, v.unbind())


def eigenvectors(factor: Tensor, former: Tensor, matrix_eps: float) -> tuple[Tensor, Tensor]:
    """Return the eigenvectors [..., n, n] of L, of large eigenvalues first, and the order 0, 1, ... [..., n].

    Where L is zero or not finite, they are those of the identity. The largest number of each is positive.

    Args:
        factor: L, symmetric and positive semi-definite, [..., n, n].
        former: of the same shape; not used.
        matrix_eps: see `Soap`.
    """
    x, _ = _conditioned(factor, matrix_eps)
    found = eigh(x)
    vectors = (
        torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand_as(x) if found is None else found[1]
    )
    vectors = vectors.flip(-1).to(x.dtype)
    largest = vectors.gather(-2, vectors.abs().argmax(-2, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0), _as_they_are(x)


def power_iteration(factor: Tensor, former: Tensor, matrix_eps: float) -> tuple[Tensor, Tensor]:
    """Return a basis [..., n, n] nearer to the eigenvectors of L, and an order of columns [..., n].

    Where L is zero or not finite, the former basis stays. Its columns, in that order, are those that the new
    ones come from. The diagonal of the triangular factor is positive, so that no column changes its sign.

    Args:
        factor: L, symmetric and positive semi-definite, [..., n, n].
        former: the basis so far, orthogonal, [..., n, n].
        matrix_eps: see `Soap`.
    """
    x, usable = _conditioned(factor, matrix_eps)
    product = x @ former
    order = (former * product).sum(-2).argsort(dim=-1, descending=True, stable=True)
    new, triangle = torch.linalg.qr(product.gather(-1, order.unsqueeze(-2).expand_as(product)))
    signs = torch.where(triangle.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    new = new * signs.unsqueeze(-2)
    return torch.where(usable, new, former), torch.where(usable.squeeze(-1), order, _as_they_are(x))


def _conditioned(factor: Tensor, matrix_eps: float) -> tuple[Tensor, Tensor]:
    """L over its trace with a small diagonal, the identity where that is unusable; where it is usable."""
    trace = factor.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    usable = factor.isfinite().all(-1, True).all(-2, True) & (trace > 0) & trace.isfinite()
    n = factor.shape[-1]
    small = torch.linspace(2 * matrix_eps, matrix_eps, n, dtype=factor.dtype, device=factor.device)
    identity = torch.eye(n, dtype=factor.dtype, device=factor.device)
    x = torch.where(usable, factor / trace, identity)
    x.diagonal(dim1=-2, dim2=-1).add_(small)
    return x, usable


def _as_they_are(x: Tensor) -> Tensor:
    """The order 0, 1, ... of the columns of x [..., n, n]: [..., n]."""
    return torch.arange(x.shape[-1], device=x.device).expand(x.shape[:-1])


def _turned(x: Tensor, bases: Pairs, size: int) -> Tensor:
    """QL^T X QR of each block of a parameter's tensor x, of its shape, for the bases of its blocks."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for block, to, (left, right) in zip(cut(x, size), cut(out, size), bases, strict=True):
        to.copy_(left.mT @ block @ right)
    return out


def _turned_many(x: Tensors, bases: list[Pairs], size: int) -> Tensors:
    """The same for several parameters, with blocks of the same shape stacked."""
    out = [torch.empty(xi.shape, dtype=xi.dtype, device=xi.device) for xi in x]
    rows = []
    for xi, to, pairs in zip(x, out, bases, strict=True):
        blocks = zip(cut(xi, size), cut(to, size), pairs, strict=True)
        rows += [(block, target, *pair) for block, target, pair in blocks]
    for blocks_of, targets, left, right in alike(rows):
        turned = torch.stack(left).mT @ torch.stack(blocks_of) @ torch.stack(right)
        torch._foreach_copy_(targets, turned.unbind())
    return out
