"""Adafactor: a second moment stored as its row and column means (arXiv 1804.04235)."""

import math

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .base import Optimizer, Options
from .card import Card, FusedRule
from .engine.caution import cautious, cautious_many
from .engine.dtensor import placed_like
from .engine.fused import exact_params
from .engine.native import Factors
from .engine.rule import Batch, Group
from .engine.storage import State, States, StateSpec, Storage, Tensors
from .engine.sums import sums_of, totals


class Adafactor(Optimizer):
    """Adafactor, with a row and a column of state for each matrix.

    With g the gradient at step t = 1, 2, ... and b2 = 1 - t^-decay_rate (0 at first: no bias to correct)::

        r = b2 r + (1 - b2) [row means of g^2 + eps]                    exp_avg_sq_row
        c = b2 c + (1 - b2) [column means of g^2 + eps]                 exp_avg_sq_col
        v = r c^T / mean(r)
        v = b2 v + (1 - b2) (g^2 + eps)                                 exp_avg_sq, of less than 2 dimensions
        u = g / sqrt(v)
        u = u / max(1, RMS(u) / clip_threshold)
        a = max(eps_scale, RMS(p)) min(lr, 1 / sqrt(t))
        m = beta1 m + (1 - beta1) a u                                   exp_avg; a u where beta1 = 0
        p = (1 - a weight_decay) p - m

    A parameter [..., rows, columns] has r [..., rows] and c [..., columns].

    Source: Algorithms 4 and 5 of the paper, with momentum of the scaled update and weight decay as in the
    authors' code and in transformers.

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: bound of the step, relative to the parameter's RMS.
        eps: added to the squared gradient.
        weight_decay: decoupled weight decay, relative to each tensor's step size a.
        eps_scale: lower bound on RMS(p).
        clip_threshold: the largest RMS of u.
        decay_rate: how fast b2 goes to 1.
        beta1: decay factor of the update, in [0, 1); 0 keeps no state for it.
        scale_parameter: False leaves RMS(p) out of the step.
        relative_step: False uses lr alone, without 1 / sqrt(t).
        warmup_init: the step starts at 1e-6 and grows by as much until it reaches lr; needs relative_step.
    """

    card = Card(
        name="adafactor",
        title="Adafactor",
        source="arXiv 1804.04235, Algorithms 4 and 5",
        when="large transformers where memory is short: almost no state",
        states={
            "exp_avg": "m, mean of the update, where beta1 > 0",
            "exp_avg_sq": "v, mean of the squared gradient, of less than two dimensions",
        },
        betas=0,
        optional=("exp_avg", "exp_avg_sq"),
        small={
            "exp_avg_sq_row": "r, row means of the squared gradient [..., rows]",
            "exp_avg_sq_col": "c, column means of the squared gradient [..., columns]",
        },
        nonnegative=("exp_avg_sq",),
        reads=4,  # sums over rows, over columns, and weighted ones read g, a norm reads p
        elementwise=False,
        options={
            "eps_scale": "the smallest RMS that a parameter counts as having",
            "clip_threshold": "the largest RMS of an update before it is scaled",
            "decay_rate": "the second moment's decay factor is 1 - t^-decay_rate",
            "beta1": "decay factor of a first moment; 0 keeps none",
            "scale_parameter": "steps are relative to the parameter's RMS",
            "relative_step": "the step is min(lr, 1 / sqrt(t)) instead of lr",
            "warmup_init": "lr grows by 1e-6 with every step until it is lr",
        },
        rules=(
            FusedRule("adafactor", (), factors=True),
            FusedRule("adafactor_momentum", ("exp_avg",), factors=True),
        ),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        eps: float = 1e-30,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        eps_scale: float = 1e-3,
        clip_threshold: float = 1.0,
        decay_rate: float = 0.8,
        beta1: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        hyper = dict(lr=lr, eps=eps, weight_decay=weight_decay, eps_scale=eps_scale)
        hyper |= dict(clip_threshold=clip_threshold, decay_rate=decay_rate, beta1=beta1)
        hyper |= dict(scale_parameter=scale_parameter, relative_step=relative_step, warmup_init=warmup_init)
        super().__init__(params, hyper, max_grad_norm=max_grad_norm, foreach=foreach, fused=fused, **options)

    def check_options(self, group: Group) -> None:
        if group["beta1"] >= 1:
            raise ValueError(f"beta1={group['beta1']}: must be in [0, 1)")
        if group["caution"] and not group["beta1"]:
            raise ValueError("caution=True needs a first moment: beta1 above 0")
        if group["clip_threshold"] == 0:
            raise ValueError("clip_threshold=0 would leave no update: the paper has 1")
        if group["warmup_init"] and not group["relative_step"]:
            raise ValueError("warmup_init=True needs relative_step=True")

    def state_spec(self, p: Tensor, group: Group) -> StateSpec:
        first = ("exp_avg",) if group["beta1"] else ()
        if p.ndim < 2:
            return StateSpec((*first, "exp_avg_sq"))
        rows, columns = p.shape[:-1], p.shape[:-2] + p.shape[-1:]
        return StateSpec(first, (("exp_avg_sq_row", tuple(rows)), ("exp_avg_sq_col", tuple(columns))))

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        eps, beta1, new = group["eps"], group["beta1"], t ** -group["decay_rate"]  # new: 1 - b2
        square = g.square()
        if p.ndim < 2:
            u = g / state["exp_avg_sq"].mul_(1 - new).add_(square + eps, alpha=new).sqrt()
        else:
            r = state["exp_avg_sq_row"].mul_(1 - new).add_(_mean(square, -1) + eps, alpha=new)
            c = state["exp_avg_sq_col"].mul_(1 - new).add_(_mean(square, -2) + eps, alpha=new)
            # Two separate roots: the product of two eps is 0 in float32.
            u = g * (r / r.mean(-1, keepdim=True)).rsqrt().unsqueeze(-1) * c.rsqrt().unsqueeze(-2)
        u = placed_like(p, u)
        a = _rms(p).clamp(min=group["eps_scale"]) if group["scale_parameter"] else 1.0
        a = a * _step_size(t, group)
        u *= a / (_rms(u) / group["clip_threshold"]).clamp(min=1)
        if beta1:
            u = cautious(state["exp_avg"].mul_(beta1).add_(u, alpha=1 - beta1), g, group)
        p.sub_(u + a * group["weight_decay"] * p)

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        """All tensors have the same states' names: either all are factored, or none is.

        With u_ij = g_ij a_i b_j, everything except g and u is small.
        """
        beta1, new = group["beta1"], [ti ** -group["decay_rate"] for ti in t]
        old = [1 - x for x in new]
        if v := state.get("exp_avg_sq"):
            torch._foreach_mul_(v, old)
            square = torch._foreach_mul(g, g)
            torch._foreach_add_(square, group["eps"])
            torch._foreach_mul_(square, new)
            torch._foreach_add_(v, square)
            u = torch._foreach_div(g, torch._foreach_sqrt(v))
        else:
            r, c = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
            square = torch._foreach_mul(g, g)
            for x, dim in ((r, -1), (c, -2)):
                means = [_mean(y, dim) for y in square]
                torch._foreach_add_(means, group["eps"])
                torch._foreach_mul_(means, new)
                torch._foreach_mul_(x, old)
                torch._foreach_add_(x, means)
            rows = [(x / x.mean(-1, keepdim=True)).rsqrt_().unsqueeze(-1) for x in r]
            u = torch._foreach_mul(g, rows)
            torch._foreach_mul_(u, [x.rsqrt().unsqueeze(-2) for x in c])
        sizes = torch.tensor([_step_size(ti, group) for ti in t], dtype=p[0].dtype, device=p[0].device)
        if group["scale_parameter"]:
            sizes = sizes * _rms_many(p).clamp(min=group["eps_scale"])
        factors = sizes / (_rms_many(u) / group["clip_threshold"]).clamp(min=1)
        torch._foreach_mul_(u, factors.unbind())
        if beta1:
            m = state["exp_avg"]
            torch._foreach_lerp_(m, u, 1 - beta1)
            u = tuple(cautious_many(m, g, group))
        if group["weight_decay"]:
            torch._foreach_mul_(p, (1 - sizes * group["weight_decay"]).unbind())
        torch._foreach_sub_(p, u)

    def why_not_fused(self, p: Tensor, group: Group) -> str:
        if reason := super().why_not_fused(p, group):
            return reason
        storage = Storage.of(p, group, taken=False)
        if p.ndim > 2 or (p.ndim == 2 and not p.shape[1]):
            return "it is neither a matrix with columns nor a vector"
        if p.ndim < 2 and storage.state in ("bfloat16", "int8"):
            return f"it is a vector, and its second moment is stored in {storage.state}"
        if not p.is_contiguous():
            return "its rows are not contiguous in memory"
        return ""

    def fused_rules(self, spec: StateSpec) -> tuple[FusedRule, ...]:
        return (self.card.rules["exp_avg" in spec.full],)

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        return 1.0, group["beta1"]

    def make_factors(self, batch: Batch) -> list[Factors]:
        found = []
        for p in batch.params:
            rows, columns = p.shape if p.ndim == 2 else (1, p.numel())
            a, b, decay = (p.new_zeros(n, dtype=batch.work) for n in (rows, columns, 1))
            found.append(Factors(a, b, columns, decay))
        return found

    @torch.no_grad()
    def fill_factors(self, batch: Batch, grads: Tensors, scale: float | Tensor) -> None:
        """With u_ij = g_ij a_i b_j, the mean of u^2 is a weighted sum of the squares of g.

        The numbers of all rows, then of all columns, are one tensor: on a GPU, the operations of each
        parameter would take longer than the rest of the step.
        """
        group, params = batch.group, exact_params(batch)
        rows, columns, _, decays = (list(x) for x in zip(*batch.factors, strict=True))
        counts = [len(x) for x in rows], [len(x) for x in columns]
        if not batch.constants:
            _make_constants(batch, list(zip(*counts, strict=True)), params)
        constants, sums = batch.constants, batch.sums
        numels, owner = constants["numels"], constants["owner"]
        t = torch.stack([state["step"] for state in batch.states]).double() + 1
        x = self._roots(batch, grads, scale, t ** -group["decay_rate"], counts[0])
        a, b = torch.split(x, [sum(some) for some in counts])
        weighted = sums["grads"].rows(grads, b.square())
        squares = totals(a.square() * weighted, counts[0]) * scale**2
        clip = ((squares / numels).sqrt() / group["clip_threshold"]).clamp(min=1)
        sizes = torch.full_like(t, float(group["lr"]))
        if group["warmup_init"]:
            sizes = torch.minimum(sizes, 1e-6 * t)
        if group["relative_step"]:
            sizes = torch.minimum(sizes, t.rsqrt())
        if group["scale_parameter"]:
            rms = (sums["params"].rows(params) / numels).sqrt()
            sizes = sizes * rms.clamp(min=group["eps_scale"])
        a *= (sizes / clip).to(a.dtype)[owner[: len(a)]]
        torch._foreach_copy_(rows + columns, list(torch.split(x, counts[0] + counts[1])))
        torch._foreach_copy_(decays, list((sizes * group["weight_decay"]).unsqueeze(1).unbind()))

    def _roots(
        self, batch: Batch, grads: Tensors, scale: float | Tensor, new: Tensor, rows: list[int]
    ) -> Tensor:
        """Update the second moments; return a and b: [rows of all, columns of all]; a vector is one row.

        `new` is 1 - b2, [tensors]; `rows` is how many each has.
        """
        constants, dtype = batch.constants, torch.promote_types(grads[0].dtype, torch.float32)
        owner, is_vector = constants["owner"], "exp_avg_sq" in batch.spec.full
        if is_vector:
            owner, names = owner[len(rows) :], ["exp_avg_sq"]
            means = (torch.cat([g.view(-1) for g in grads]).to(dtype) * scale).square()
        else:
            names = [name for name, _ in batch.spec.small]
            means = batch.sums["grads"].rows_and_columns(grads) * constants["shares"] * scale**2
        states = [state[name].view(-1) for name in names for state in batch.states]
        means = (means + batch.group["eps"]).to(dtype)
        v = torch.cat(states).to(dtype).lerp_(means, new.to(dtype)[owner])
        torch._foreach_copy_(states, list(torch.split(v, [len(x) for x in states])))
        if is_vector:
            return torch.cat([v.new_ones(len(rows)), v.rsqrt_()])
        of_rows = v[: sum(rows)]
        of_rows /= (totals(of_rows, rows) / constants["rows"]).to(dtype)[owner[: len(of_rows)]]
        return v.rsqrt_()


def _make_constants(batch: Batch, shapes: list[tuple[int, int]], params: Tensors) -> None:
    """What `fill_factors` makes only once, for factors of these numbers of rows and columns."""
    p, dtype = params[0], torch.promote_types(params[0].dtype, torch.float32)
    counts = torch.tensor(shapes, device=p.device).t()
    owners = [torch.repeat_interleave(some) for some in counts]
    rows, columns = counts.double().clamp(min=1)
    shares = torch.cat([1 / columns[owners[0]], 1 / rows[owners[1]]]).to(dtype)
    batch.constants |= dict(rows=rows, numels=rows * columns, owner=torch.cat(owners), shares=shares)
    whole = [(1, rows * columns) for rows, columns in shapes]
    batch.sums["grads"] = sums_of(batch.params[0], batch.params[0].dtype, shapes)
    batch.sums["params"] = sums_of(batch.params[0], p.dtype, whole)


def _step_size(t: float, group: Group) -> float:
    """The step relative to the parameter's size at step t."""
    lr = float(group["lr"])
    if group["warmup_init"]:
        lr = min(lr, 1e-6 * t)
    return min(lr, 1 / math.sqrt(t)) if group["relative_step"] else lr


def _mean(x: Tensor, dim: int) -> Tensor:
    """The mean over a dimension, which it removes; 0 where the dimension is empty."""
    return x.sum(dim) / max(x.shape[dim], 1)


def _rms(x: Tensor) -> Tensor:
    norm: Tensor = x.norm()
    return norm / math.sqrt(max(x.numel(), 1))


def _rms_many(x: Tensors | tuple[Tensor, ...]) -> Tensor:
    """The RMS of each tensor: [tensors]."""
    counts = torch.tensor([max(y.numel(), 1) for y in x], dtype=x[0].dtype, device=x[0].device)
    return torch.stack(torch._foreach_norm(x)) / counts.sqrt()
