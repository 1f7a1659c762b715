"""What schedule-free optimizers share (arXiv 2405.15682), and the switch between training and evaluation."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from .base import Optimizer
from .engine import storage
from .engine.caution import cautious, cautious_many
from .engine.checks import whole_number
from .engine.dtensor import local
from .engine.fused import set_factors
from .engine.native import Factors
from .engine.rule import Batch, Group
from .engine.storage import State, States, StateSpec, Storage, Tensors

OPTIONS = {
    "warmup_steps": "steps in which the learning rate grows to lr in a straight line",
    "r": "power of t in the weight of step t in the mean",
    "weight_lr_power": "power of the largest learning rate so far in that weight",
}
SMALL = {
    "weight_sum": "1 / c, the sum of the weights in units of the newest",
    "lr_max": "the largest learning rate so far",
}


class ScheduleFree(Optimizer):
    """What the schedule-free optimizers share: three iterates, the weights of the mean, and two modes.

    With d the direction of the step, all tensors of the parameter's shape, and t = 1, 2, ...::

        y = (1 - b1) z + b1 x                   the parameter while it is trained; gradients are those at y
        z = z - lr_t d                          z
        x = (1 - c_t) x + c_t z                 the parameter in eval mode, the mean of all z
        lr_t = lr min(1, t / warmup_steps)
        c_t = w_t / (w_1 + ... + w_t), w_t = t^r max(lr_1, ..., lr_t)^weight_lr_power

    All three begin at the parameter: z is set in the first step. x is not kept: it is (y - (1 - b1) z) / b1.
    The numbers of the mean, `weight_sum` (the sum of the weights in units of the newest, 1 / c_t) and
    `lr_max`, are one-element tensors on the parameter's device, so that no step waits for them.

    Source: Algorithm 1 of the paper, with the warm-up and the weights of its section on practice.

    z is a parameter, not a moment: for bfloat16 models give state_dtype="float32", or "bfloat16", which
    rounds stochastically. None keeps z in bfloat16, rounded to nearest, where small steps are lost; "int8"
    keeps it in float32.

    `eval()` moves the parameters from y to x and `train()` moves them back, in place; see there.
    """

    def check_options(self, group: Group) -> None:
        if not group["betas"][0]:
            raise ValueError(
                f"betas={group['betas']}: the first must be above 0, as the mean x is (y - (1 - b1) z) / b1"
            )
        whole_number("warmup_steps", group["warmup_steps"], 0)
        if not isinstance(group["train_mode"], bool):
            raise TypeError(f"train_mode={group['train_mode']!r}: use True or False")

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, in the mode of the others."""
        if self.param_groups:
            param_group.setdefault("train_mode", self.is_training)
        super().add_param_group(param_group)

    def state_spec(self, p: Tensor, group: Group) -> StateSpec:
        return StateSpec(tuple(self.card.states), tuple((name, ()) for name in SMALL))

    # ---- modes

    @property
    def is_training(self) -> bool:
        """Whether the parameters are at y, where steps are made; False if they are at x."""
        return all(group["train_mode"] for group in self.param_groups)

    def train(self) -> None:
        """Move the parameters to y, where they are trained; nothing if they are there."""
        self._move(True)

    def eval(self) -> None:
        """Move the parameters to the mean x, for evaluation and export; nothing if they are there.

        `train()` takes them back to the same bits, except for elements whose |x| is in a higher binade than
        |y|, or whose y is a power of two: these may differ by a unit in the last place of x, in the
        parameter's dtype. In float64 all may differ by a few units. With param_rounding "kahan" and "split",
        what they keep counts as a part of the parameter.
        """
        self._move(False)

    @torch.no_grad()
    def _move(self, training: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] == training:
                continue
            b1 = group["betas"][0]
            for p in group["params"]:
                if "z" in (state := self.state.get(p, {})):
                    kept = Storage.of(p, group, self.take_gradients)
                    kept.fit_rest(self.card, p, state)
                    _lerp(
                        local(p),
                        {k: local(x) for k, x in state.items() if isinstance(x, Tensor)},
                        kept,
                        1 - b1 if training else 1 - 1 / b1,
                    )
            group["train_mode"] = training

    @_disable_dynamo
    def _update(self) -> None:
        if not self.is_training:
            raise RuntimeError(
                f"{self.card.title} is in eval mode, where the parameters are the mean of the steps: call "
                "optimizer.train() before training, or evaluate within adan_optim.evaluating(optimizer)"
            )
        super()._update()

    # ---- the rule

    def direction(self, g: Tensor, state: State, t: float, group: Group) -> Tensor:
        """Return the preconditioned gradient, of g's shape, and update the moments in the state."""
        raise NotImplementedError

    def directions(self, g: Tensors, state: States, t: list[float], group: Group) -> Tensors:
        """Do the same for lists with one tensor per parameter, as new tensors; g must not be changed."""
        raise NotImplementedError

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        z, b1 = state["z"], group["betas"][0]
        if t == 1:
            z.copy_(p)
        rates, shares = _weigh([state], torch.full_like(state["lr_max"], t)[None], group)
        rate, share = rates[0], shares[0]
        d = cautious(self.direction(g, state, t, group), g, group) + group["weight_decay"] * p
        p.sub_(share * (p - z) + rate * (1 - b1 * (1 - share)) * d)
        z.sub_(rate * d)

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        z, b1 = state["z"], group["betas"][0]
        small = [{name: state[name][i] for name in SMALL} for i in range(len(p))]
        if first := [i for i, ti in enumerate(t) if ti == 1]:
            torch._foreach_copy_([z[i] for i in first], [p[i] for i in first])
        now = torch.tensor(t, dtype=p[0].dtype, device="cpu").to(p[0].device, non_blocking=True)
        rates, shares = _weigh(small, now, group)
        d = cautious_many(self.directions(g, state, t, group), g, group)
        torch._foreach_add_(d, p, alpha=group["weight_decay"])
        away = torch._foreach_sub(p, z)
        torch._foreach_mul_(away, shares.unbind())
        torch._foreach_sub_(p, away)
        torch._foreach_mul_(d, rates.unbind())
        torch._foreach_sub_(z, d)
        torch._foreach_mul_(d, (1 - b1 * (1 - shares)).unbind())
        torch._foreach_sub_(p, d)

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        return 0.0, *group["betas"], group["eps"], group["weight_decay"]  # lr is a part of the factors

    def make_factors(self, batch: Batch) -> list[Factors]:
        """Allocate a factor for each parameter, its learning rate; `decay` is the share of the new z."""
        shares = batch.params[0].new_empty(len(batch.params), dtype=batch.work)
        batch.constants["shares"] = shares
        return [f._replace(decay=shares[i : i + 1]) for i, f in enumerate(super().make_factors(batch))]

    @torch.no_grad()
    def fill_factors(self, batch: Batch, grads: Tensors, scale: float | Tensor) -> None:
        t = torch.stack([state["step"] for state in batch.states]).to(batch.work) + 1
        rates, shares = _weigh(batch.states, t, batch.group)
        set_factors(batch, rates)
        batch.constants["shares"].copy_(shares)


@contextlib.contextmanager
def evaluating(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Evaluate with the weights that an optimizer means for it; afterwards it is in the mode from before.

    For any optimizer, also one that accelerate has wrapped: without `train` and `eval` nothing happens::

        with adan_optim.evaluating(optimizer):
            accuracy = evaluate(model)

    The statistics of BatchNorm are those of y. Compute them again for x, inside of the block and before the
    evaluation, with `torch.optim.swa_utils.update_bn(loader, model)`.
    """
    groups: list[Any] = optimizer.param_groups
    changes = callable(getattr(optimizer, "eval", None)) and any(g.get("train_mode") for g in groups)
    if not changes:
        yield
        return
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]


def denominators(v: Tensors, beta: float, t: list[float], group: Group) -> Tensors:
    """sqrt(v) / sqrt(1 - beta^t) + eps."""
    found = torch._foreach_sqrt(v)
    torch._foreach_div_(found, [math.sqrt(1 - beta**ti) for ti in t])
    torch._foreach_add_(found, group["eps"])
    return list(found)


def _weigh(states: list[State], t: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Take step t [parameters] into `weight_sum` and `lr_max`; return lr_t and c_t, [parameters] each.

    All of it on the device: `weight_sum` is in units of the newest weight, so that steps of equal weights
    are counted exactly, and a learning rate of 0 needs no case of its own.
    """
    lr, r, power = group["lr"], group["r"], group["weight_lr_power"]
    if isinstance(lr, Tensor):
        lr = lr.reshape(()) if lr.device == t.device else float(lr)
    sums, tops = ([state[name] for state in states] for name in ("weight_sum", "lr_max"))
    warmup = (t / group["warmup_steps"]).clamp(max=1) if group["warmup_steps"] else torch.ones_like(t)
    rates, before = (lr * warmup).to(t.dtype), torch.stack(tops)
    top = torch.maximum(before, rates)
    ratio = ((t - 1) / t) ** r * (before / top.clamp(min=torch.finfo(t.dtype).tiny)) ** power
    total = 1 + ratio * torch.stack(sums)
    for old, new in ((sums, total), (tops, top)):
        torch._foreach_copy_(old, list(new.unbind()))
    return rates, 1 / total


def _lerp(p: Tensor, state: State, kept: Storage, weight: float) -> None:
    """Move a parameter of any shape, no DTensor, by `weight` of the way to z.

    In float64 and rounded to nearest: the way back contracts, so that it ends at the same number.
    """
    work = torch.float32 if p.device.type == "mps" else torch.float64  # which MPS has not
    value = storage.exact(p, state)
    moved = value.to(work).lerp_(storage.load(state, "z", signed=True).to(work), weight).to(value.dtype)
    if kept.rounding == "stochastic":
        kept = kept._replace(rounding="nearest")
    kept.store_param(p, moved, state, None)
