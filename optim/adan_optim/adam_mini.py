"""Adam-mini: Adam with one second moment for each block of a parameter (arXiv 2406.16793)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .base import Optimizer, Options
from .card import Card, FusedRule
from .engine import blocks
from .engine.caution import cautious, cautious_many
from .engine.dtensor import local
from .engine.native import Factors
from .engine.rule import Batch, Group
from .engine.storage import REST_NAMES, State, States, StateSpec, Tensors
from .engine.sums import sums_of
from .partitions import Partition, partition


class AdamMini(Optimizer):
    """Adam-mini, with half of Adam's state.

    With g the gradient at step t = 1, 2, ..., g and m of the parameter's shape, and b one of its blocks::

        m = b1 m + (1 - b1) g                                          exp_avg
        v_b = b2 v_b + (1 - b2) mean of g^2 over block b               exp_avg_sq
        x_b = lr / (1 - b1^t) / [sqrt(v_b) / sqrt(1 - b2^t) + eps]
        p = (1 - lr weight_decay) p - x_b m

    `exp_avg_sq` has a float32 number for each block, and its shape defines the blocks: see
    `adan_optim.engine.blocks`.

    Source: Algorithm 1 of the paper, as zyushun/Adam-mini 1.1.1 computes it.

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: learning rate; as for AdamW.
        betas: decay factors of gradient and squared gradient.
        eps: added to the denominator, after the bias correction.
        weight_decay: decoupled weight decay.
        partition: the blocks, from `adan_optim.partition(model)`.
            `adan_optim.build_optimizer(model, "adam_mini")` makes it, also from that
            function's arguments as a mapping: {"rules": {"v_proj": "tensor"}}. None goes by shape: a block
            for each row, and one for a tensor of fewer than two dimensions.

    Raises:
        ValueError: for a parameter that is not in the partition, and for what the base class refuses.
    """

    card = Card(
        name="adam_mini",
        title="Adam-mini",
        source="arXiv 2406.16793, Algorithm 1; zyushun/Adam-mini 1.1.1",
        when="AdamW's settings with half its state: language models, transformers",
        states={"exp_avg": "m, mean of the gradient"},
        small={"exp_avg_sq": "v, mean of the squared gradient of each block"},
        betas=2,
        nonnegative=("exp_avg_sq",),
        reads=1,  # the means of blocks read g; a CPU finds it in a cache the second time
        elementwise=False,
        options={"partition": "blocks that share a second moment, by adan_optim.partition(model)"},
        rules=(FusedRule("adam_mini", ("exp_avg",), factors=True),),
        cpu_rules=(FusedRule("adam_mini_blocks", ("exp_avg",), factors=True, moments="exp_avg_sq"),),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        foreach: bool | None = None,
        fused: bool | None = None,
        *,
        partition: Partition | None = None,
        **options: Unpack[Options],
    ) -> None:
        if not (partition is None or isinstance(partition, Partition)):
            raise TypeError(f"partition={partition!r}: give what adan_optim.partition(model) returns")
        self.partition = partition
        self._blocks: dict[Tensor, blocks.Shape] = {}
        hyper = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, hyper, max_grad_norm=max_grad_norm, foreach=foreach, fused=fused, **options)

    @classmethod
    def of_model(cls, model: nn.Module, groups: list[Group], **options: Any) -> Optimizer:
        given = options.get("partition")
        if given is None or (isinstance(given, Mapping) and not isinstance(given, Partition)):
            options["partition"] = partition(model, **(given or {}))
        return cls(groups, **options)

    def check_options(self, group: Group) -> None:
        if self.partition is not None:
            self._blocks |= self.partition.blocks_of(group["params"], group.get("param_names", ()))

    def state_spec(self, p: Tensor, group: Group) -> StateSpec:
        return StateSpec(("exp_avg",), (("exp_avg_sq", self._blocks.get(p) or blocks.default(p.shape)),))

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        beta1, lr = group["betas"][0], float(group["lr"])
        m, v = state["exp_avg"], local(state["exp_avg_sq"])
        (x,) = block_steps([g], [v], [t], group)
        m = cautious(m.mul_(beta1).add_(g, alpha=1 - beta1), g, group)
        local(p).mul_(1 - lr * group["weight_decay"]).sub_(local(m) * blocks.spread(x, p))

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        m, v = state["exp_avg"], state["exp_avg_sq"]
        x = block_steps(g, v, t, group)
        torch._foreach_lerp_(m, g, 1 - group["betas"][0])
        m = cautious_many(m, g, group)
        if group["weight_decay"]:
            torch._foreach_mul_(p, 1 - float(group["lr"]) * group["weight_decay"])
        torch._foreach_addcmul_(p, m, [blocks.spread(xi, pi) for xi, pi in zip(x, p, strict=True)], -1)

    def why_not_fused(self, p: Tensor, group: Group) -> str:
        reason = super().why_not_fused(p, group)
        if not reason and not blocks.follow_in_memory(p, self.state_spec(p, group).small[0][1]):
            return "the elements of its blocks are not contiguous in memory"
        return reason

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        return float(group["lr"]), beta1, group["weight_decay"], beta2, group["eps"]

    def make_factors(self, batch: Batch) -> list[Factors]:
        found = []
        for p, state in zip(batch.params, batch.states, strict=True):
            x = torch.empty_like(state["exp_avg_sq"])
            each = len(x) == p.numel()
            found.append(Factors(None, x, len(x)) if each else Factors(x, None, p.numel() // len(x)))
        return found

    @torch.no_grad()
    def fill_factors(self, batch: Batch, grads: Tensors, scale: float | Tensor) -> None:
        """As `block_steps`, for the blocks of all parameters at once: `owner` and `share` are [blocks]."""
        states, (beta1, beta2) = [state["exp_avg_sq"] for state in batch.states], batch.group["betas"]
        counts, constants = [len(state) for state in states], batch.constants
        if not batch.sums:
            of_block = torch.tensor(counts, device=states[0].device)
            sizes = torch.tensor([max(p.numel(), 1) for p in batch.params], device=states[0].device)
            constants["owner"] = torch.repeat_interleave(of_block)
            constants["share"] = (of_block.double() / sizes).to(states[0].dtype)[constants["owner"]]
            shapes = [(n, p.numel() // n) for p, n in zip(batch.params, counts, strict=True)]
            batch.sums["grads"] = sums_of(batch.params[0], batch.params[0].dtype, shapes)
        owner, share = constants["owner"], constants["share"]
        sums = batch.sums["grads"].rows(grads)
        v = beta2 * torch.cat(states) + (1 - beta2) * (sums * share * scale**2)
        t = torch.stack([state["step"] for state in batch.states]).double() + 1
        rate, root = batch.group["lr"] / (1 - beta1**t), (1 - beta2**t).sqrt()
        x = rate.to(v.dtype)[owner] / (v.sqrt() / root.to(v.dtype)[owner] + batch.group["eps"])
        torch._foreach_copy_(states, list(torch.split(v, counts)))
        places = [x for f in batch.factors for x in (f.rows, f.columns) if x is not None]
        torch._foreach_copy_(places, list(torch.split(x, counts)))

    def check_saved_state(self, where: str, p: Tensor, state: dict[str, Any], spec: StateSpec) -> None:
        expected = dict(spec.small)["exp_avg_sq"]
        keys = {"step", "exp_avg", "exp_avg_sq"}
        ours = keys <= state.keys() <= keys | {"exp_avg_scale"} | REST_NAMES
        if ours and state["exp_avg"].shape == p.shape and state["exp_avg_sq"].shape != expected:
            raise ValueError(
                f"a checkpoint of another partition: {where} of shape {tuple(p.shape)} has blocks "
                f"{tuple(state['exp_avg_sq'].shape)} there and {expected} here; give the same partition"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "partition": self.partition, "_blocks": self._blocks}


def block_steps(g: Tensors, v: Tensors, t: list[float], group: Group) -> Tensors:
    """Update the second moments, and return the factor x_b on m of every block.

    Args:
        g: gradients of any shape, DTensors or not.
        v: their second moments, plain tensors with the shapes of the blocks; updated in place.
        t: steps, including this one.
        group: lr, betas and eps.

    Returns:
        lr / (1 - b1^t) / (sqrt(v) / sqrt(1 - b2^t) + eps), tensors of the shapes of v.
    """
    beta1, beta2 = group["betas"]
    sums = [blocks.squared_sums(gi, tuple(vi.shape)) for gi, vi in zip(g, v, strict=True)]
    # 1 / the number of elements in a block; a tensor without elements has one empty block
    shares = [vi.numel() / max(gi.numel(), 1) for gi, vi in zip(g, v, strict=True)]
    torch._foreach_mul_(sums, [(1 - beta2) * share for share in shares])
    torch._foreach_mul_(v, beta2)
    torch._foreach_add_(v, sums)
    x = torch._foreach_sqrt(v)
    torch._foreach_div_(x, [math.sqrt(1 - beta2**ti) for ti in t])
    torch._foreach_add_(x, group["eps"])
    torch._foreach_reciprocal_(x)
    torch._foreach_mul_(x, [float(group["lr"]) / (1 - beta1**ti) for ti in t])
    return list(x)
