"""Prodigy's estimate of the distance to the solution, instead of a learning rate (arXiv 2306.06101).

`DistanceEstimate` makes of an optimizer its learning-rate-free form; prodigy.py has the two.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from .engine.checks import number, whole_number
from .engine.dtensor import is_dtensor, local, placing, reduce_over_mesh, whole
from .engine.layout import zeros_like
from .engine.rule import Batch, Group, UpdateRule
from .engine.storage import State, States, StateSpec, Tensors, load
from .engine.sums import signed_totals

# What both forms have besides the options and states of their rule.
OPTIONS = {
    "beta3": "decay factor of the sums that give d; None is the root of the last beta",
    "d0": "the first d: much smaller than any sensible step",
    "d_coef": "factor on the estimate: the way to take larger or smaller steps",
    "growth_rate": "the most by which d grows in a step; None is no limit",
    "use_bias_correction": "False leaves out the bias corrections, as the paper does",
    "safeguard_warmup": "leave lr out of the sum s: for a long warm-up from lr near 0",
    "slice_p": "keep s and p0 of each slice_p-th element alone; above 1 foreach and reference only",
}
STATES = {"s": "s, sum of the weighted gradients", "p0": "x0, the parameter before the first step"}
SLICES = {"s_slice": "s of each slice_p-th element", "p0_slice": "x0 of each slice_p-th element"}
_SHARED = ("d0", "d_coef", "growth_rate", "beta3")  # of one number, so the same in all groups
_ESTIMATE = ("d", "d_max", "d_numerator")  # keys of the groups


class DistanceEstimate(UpdateRule):
    """A rule on gradients times d, with learning rate d lr and d eps; d is estimated from all parameters.

    With sums over all elements of all parameters, c_t the bias correction of a step, and top the largest lr
    of the groups, a step with d also makes the d of the next (Algorithm 4 of the paper)::

        r = b3 r + (d^2 / d0) top sum c_t g (x0 - x)
        s = b3 s + (d^2 / d0) lr c_t g                                  for each element
        d = max(d, d_coef r / sum |s|)                                  at most growth_rate d, unless d = d0

    In a convex problem sum_t w_t <g, x0 - x> <= sum_t w_t <g, x0 - x*> = <s, x0 - x*>, so r / |s| is below
    the largest distance of an element. The weights w must be the same for all elements; a group whose lr is
    a fraction of the largest expects to move by that fraction of d, and so its lr is in s, and top in r.

    A parameter without a gradient keeps its s, which counts. Where r or |s| is not finite, or |s| is 0, the
    estimate stays as it is. Each group has it as tensors of one element: `d`, `d_max` and `d_numerator`.
    """

    device_numbers: ClassVar[tuple[str, ...]] = ("lr", "d")
    resizable = False  # rows without a step have no x0
    independent = False

    # ---- groups and checkpoints

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(param_group)
        if len(self.param_groups) == 1:  # it may have been another optimizer's
            for name in _ESTIMATE:
                self.param_groups[0].pop(name, None)
        self._share(self.param_groups[0])

    def check_options(self, group: Group) -> None:
        super().check_options(group)
        for name in ("d0", "d_coef"):
            if group[name] == 0:
                raise ValueError(f"{name}=0: must be above 0")
        beta3, growth = group["beta3"], group["growth_rate"]
        if beta3 is not None and number("beta3", beta3) >= 1:
            raise ValueError(f"beta3={beta3}: must be below 1; None is the root of the last beta")
        if growth is not None and not (_is_number(growth) and growth > 1):
            raise ValueError(f"growth_rate={growth!r}: give a number above 1, or None for no limit")
        whole_number("slice_p", group["slice_p"])
        if group["slice_p"] > 1 and any(map(is_dtensor, group["params"])):
            raise ValueError(f"slice_p={group['slice_p']} is not for DTensors: leave it 1")
        for name in _SHARED if any(group is one for one in self.param_groups) else ():
            if group[name] != (first := self.param_groups[0][name]):
                raise ValueError(f"{name}={group[name]} and {first} in different groups: d is one for all")

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict, with copies of the estimate in each group."""
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group |= {name: group[name].clone() for name in _ESTIMATE}
        return saved

    def load_foreign_state(self, state: dict[str, Any]) -> None:
        """The package prodigyopt keeps s and p0 flat, and one 0 for a p0 of zeros."""
        super().load_foreign_state(state)
        s, p0, like = (state.get(name) for name in ("s", "p0", "exp_avg"))
        if not (isinstance(s, Tensor) and isinstance(p0, Tensor) and isinstance(like, Tensor)):
            return
        p0 = p0 if p0.numel() == s.numel() else torch.zeros_like(s)
        if s.numel() == like.numel():
            state |= {"s": s.reshape(like.shape), "p0": p0.reshape(like.shape)}
        else:
            del state["s"], state["p0"]
            state |= {"s_slice": s, "p0_slice": p0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share(self.param_groups[0])

    def _share(self, saved: Group) -> None:
        """Make the estimate in a group, or else the first, that of all groups."""
        d = saved.get("d", saved["d0"])
        values: Any = d, saved.get("d_max", d), saved.get("d_numerator", 0.0)
        self._terms: Tensors = []  # [2] of each parameter that was updated without a kernel
        self._show([torch.tensor(float(x), dtype=torch.float64, device="cpu") for x in values])

    def _show(self, estimate: Sequence[Tensor]) -> None:
        for group in self.param_groups:
            group.update(zip(_ESTIMATE, estimate, strict=True))

    # ---- states

    def state_spec(self, p: Tensor, group: Group) -> StateSpec:
        if group["slice_p"] == 1:
            return StateSpec(tuple(self.card.states))
        count = -(-p.numel() // group["slice_p"])
        own = tuple(name for name in self.card.states if name not in STATES)
        return StateSpec(own, tuple((name, (count,)) for name in SLICES))

    def prepare_state(self, p: Tensor, state: State, group: Group) -> None:
        if group["slice_p"] > 1:
            if "p0_slice" not in state:
                state["p0_slice"] = _slice(p.detach(), group).clone()
        elif "p0" not in state:
            state["p0"] = zeros_like(p, list(self.card.states).index("p0"), p.dtype).copy_(p.detach())

    # ---- the step

    def why_not_fused(self, p: Tensor, group: Group) -> str:
        if group["slice_p"] > 1:
            return f"{self.card.title} has no fused kernel for slice_p={group['slice_p']}"
        return super().why_not_fused(p, {**group, "amsgrad": False})

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        self._add_terms(p, g, state, t, group)
        super().single_tensor(p, g * float(group["d"]), state, _time(t, group), _with_d(group))

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        for i in range(len(p)):
            self._add_terms(p[i], g[i], {name: x[i] for name, x in state.items()}, t[i], group)
        scaled = list(torch._foreach_mul(g, float(group["d"])))
        super().multi_tensor(p, scaled, state, [_time(ti, group) for ti in t], _with_d(group))

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        numbers = float(group["lr"]), float(group["d"]), group["d0"], self._beta3
        flags = group["use_bias_correction"], group["safeguard_warmup"]
        return *numbers, *flags, *super().fused_hyper({**group, "lr": 0.0})

    @property
    def _beta3(self) -> float:
        group = self.param_groups[0]
        return float(math.sqrt(group["betas"][-1]) if group["beta3"] is None else group["beta3"])

    def _add_terms(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        """Update the s of a parameter, and keep its terms of the sums."""
        s, p0 = (state[name] for name in (STATES if group["slice_p"] == 1 else SLICES))
        if group["slice_p"] > 1:
            p, g = _slice(p, group), _slice(g, group)
        c, d = _correction(t, group), float(group["d"])
        rate = d / group["d0"] * d * (1.0 if group["safeguard_warmup"] else float(group["lr"]) * c)
        s.mul_(self._beta3).add_(g, alpha=rate)
        wide = _wide(local(p).device)
        product = (g * (p0 - p)).sum(dtype=wide) * (c if t > 1 else 0.0)  # whatever the rounding of p0
        self._terms.append(torch.stack([whole(product), whole(s.abs().sum(dtype=wide))]))

    @torch.no_grad()
    def finish_step(self, batches: list[Batch], idle: Tensors) -> None:
        """Make the next d of the sums, where the parameters are, without waiting for a GPU."""
        if not batches:
            return
        device = batches[0].params[0].device
        terms, sums = self._sums(batches, idle), []
        for (place, *layout), found in terms.items():
            total = torch.stack(found).sum(0)
            total = reduce_over_mesh(total, *layout) if layout else total
            sums.append(total.to(device, _wide(device)) if place != device else total)
        if isinstance(total, FakeTensor):  # without values
            return
        old = [self.param_groups[0][name].to(device, _wide(device)) for name in _ESTIMATE]
        self._show(old)
        for x, new in zip(old, self._next(old, torch.stack(sums).sum(0)), strict=True):
            x.copy_(new)

    def _next(self, old: Tensors, sums: Tensor) -> Tensors:
        """The d, d_max and r that follow those of a step, from its two sums [2]."""
        (d, d_max, r), (products, s), group = old, sums.unbind(), self.param_groups[0]
        top = _top([x["lr"] for x in self.param_groups], d)
        r = self._beta3 * r + d / group["d0"] * d * top * products
        found = group["d_coef"] * r / s
        d_max = torch.maximum(d_max, found)
        d = torch.where(d == group["d0"], torch.maximum(d, found), d)
        d = d_max if group["growth_rate"] is None else torch.minimum(d_max, d * group["growth_rate"])
        is_known = found.isfinite()
        if (found_inf := getattr(self, "found_inf", None)) is not None:
            is_known &= found_inf.to(d.device) == 0
        return [torch.where(is_known, new, x) for new, x in zip((d, d_max, r), old, strict=True)]

    def _sums(self, batches: list[Batch], idle: Tensors) -> dict[tuple[Any, ...], Tensors]:
        """The terms [2] of this process, by their device and the layout of the DTensors they are parts of."""
        found: dict[tuple[Any, ...], Tensors] = defaultdict(list)
        without_kernel = sum(len(batch.params) for batch in batches if batch.table is None)
        terms = iter(self._terms[len(self._terms) - without_kernel :])
        self._terms = []
        for batch in batches:
            owner = batch.owners[0][0]
            layout = placing(owner) if self.is_elementwise(owner, batch.group) else ()
            key = (batch.params[0].device, *layout)
            mine = found[key]
            if batch.block_sums is not None:
                mine.append(signed_totals(batch.block_sums))
            else:
                mine += [next(terms) for _ in batch.params]
        for p in idle:
            state = {name: local(x) for name, x in self.state.get(p, {}).items()}
            if name := next((name for name in ("s", "s_slice") if name in state), None):
                size = load(state, name, True).abs().sum(dtype=_wide(local(p).device))
                key = (local(p).device, *placing(p))
                found[key].append(torch.stack([torch.zeros_like(size), size]))
        return found


def _time(t: float, group: Group) -> float:
    """The step for the bias corrections; without them, they are those of a late one."""
    return t if group["use_bias_correction"] else math.inf


def _correction(t: float, group: Group) -> float:
    """The factor on a step of the bias corrections, of the mean gradient and of the mean square."""
    betas, t = group["betas"], _time(t, group)
    return float(math.sqrt(1 - betas[-1] ** t) / (1 - betas[0] ** t))


def _with_d(group: Group) -> Group:
    d = float(group["d"])
    return {**group, "lr": d * float(group["lr"]), "eps": d * group["eps"], "amsgrad": False}


def _slice(x: Tensor, group: Group) -> Tensor:
    """Each slice_p-th element of x, any shape: [elements / slice_p, rounded up]."""
    return x.reshape(-1)[:: group["slice_p"]]


def _top(rates: list[Any], like: Tensor) -> Any:
    """The largest of some learning rates, without waiting for those that are on a GPU."""
    if not any(isinstance(x, Tensor) for x in rates):
        return max(rates)
    return torch.stack([torch.as_tensor(x).to(like).reshape(()) for x in rates]).amax()


def _wide(device: torch.device) -> torch.dtype:
    """The dtype of the sums on a device: float64 where it has that."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def _is_number(x: Any) -> bool:
    return isinstance(x, Real) and not isinstance(x, bool)
