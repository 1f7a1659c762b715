"""What all optimizers share: checks, state, the choice of a path, clipping, non-finite gradients, loading.

An optimizer adds its card, its hyper-parameters and its update rule three times over: `update_one` (the
definition, one tensor at a time), `update_many` (lists of tensors) and, in csrc/rules.h, the fused rule with
`fused_hyper` numbers. A rule is given float32 (or float64) tensors to work on; how they are kept is not its
business.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from . import native
from .card import Card
from .checks import number
from .layout import same_layout, zeros_like
from .norm import global_norm, is_dtensor, local

Group = dict[str, Any]
State = dict[str, Tensor]

# Options of the whole optimizer; everything else is a hyper-parameter of a group.
OPTIMIZER_WIDE = ("max_grad_norm", "nonfinite", "foreach", "fused")


@dataclass
class Batch:
    """Tensors that one path updates together: one group, one device, one dtype."""

    group: Group
    path: str
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    table: native.Table | None = None


@dataclass
class Plan:
    """Fused batches that the next step can use again, and what must not have changed until then."""

    batches: list[Batch]
    groups: list[tuple[Group, native.Members]]  # the groups and their parameters
    idle: list[Tensor]  # parameters without a gradient
    states: native.Members  # all state dicts of the optimizer

    def holds(self, optimizer: torch.optim.Optimizer) -> bool:
        """Takes over the new gradients; False where a tensor moved or another parameter has a gradient."""
        return (
            len(self.groups) == len(optimizer.param_groups)
            and all(
                old is new and params.unchanged(new["params"])
                for (old, params), new in zip(self.groups, optimizer.param_groups, strict=True)
            )
            and all(p.grad is None for p in self.idle)
            and self.states.unchanged(optimizer.state)
            and all(batch.table is not None and batch.table.refresh() for batch in self.batches)
        )


class Optimizer(torch.optim.Optimizer):
    """Base class of the optimizers in this package.

    Steps are counted per parameter: one that is frozen, unfrozen or without a gradient for a while behaves
    as if it had an optimizer of its own. Gradients are never changed.

    Args:
        params: tensors, named tensors, or groups of them, as for any torch optimizer.
        hyper: hyper-parameters of a group with their defaults; checked for each group. `lr` may be a
            one-element tensor.
        max_grad_norm: gradients are scaled by min(1, max_grad_norm / (norm + eps)), where norm is the L2
            norm over all groups (over all shards of DTensors) and eps the constructor's. 0 is off.
        nonfinite: what to do when the norm of the gradients is inf or NaN: "propagate" computes with them,
            "skip" leaves the step out, "raise" raises FloatingPointError; in both nothing is changed, and
            both wait for the device.
        foreach, fused: None picks the fastest path that works, for each tensor. fused=True goes before
            foreach; foreach=False without fused=True is the reference path.
        differentiable: refused; it is here because torch's optimizers have it.

    Raises:
        ValueError, TypeError: for a hyper-parameter that makes no sense, an unknown key, a parameter that
            is complex or not a floating-point tensor, or a path that cannot run.
    """

    card: ClassVar[Card]
    _step_supports_amp_scaling = True  # GradScaler then sets grad_scale and found_inf instead of unscaling

    def __init__(
        self,
        params: ParamsT,
        hyper: Group,
        *,
        max_grad_norm: float = 0.0,
        nonfinite: str = "propagate",
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: bool = False,
    ) -> None:
        if differentiable:
            raise ValueError(
                f"differentiable=True: {self.card.title} updates its states in place, where autograd cannot "
                "follow; leave it False"
            )
        if nonfinite not in ("propagate", "skip", "raise"):
            raise ValueError(f"nonfinite={nonfinite!r}: use 'propagate', 'skip' or 'raise'")
        for name, flag in {"foreach": foreach, "fused": fused}.items():
            if flag not in (None, True, False):
                raise TypeError(f"{name}={flag!r}: use None, True or False")
        self.max_grad_norm = float(number("max_grad_norm", max_grad_norm))
        self.nonfinite, self.foreach, self.fused = nonfinite, foreach, fused
        self._plan: Plan | None = None
        super().__init__(params, hyper)

    # ---- the update rule: what a subclass gives

    def update_one(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        """Updates the parameter p and its state in place from the gradient g at step t = 1, 2, ..."""
        raise NotImplementedError

    def update_many(
        self, p: list[Tensor], g: list[Tensor], state: dict[str, list[Tensor]], t: list[float], group: Group
    ) -> None:
        """The same for lists of tensors, of which g must not be changed."""
        raise NotImplementedError

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        """The numbers of the fused rule's Hyper struct (csrc/rules.h), in its order."""
        raise NotImplementedError

    def adopt_state(self, state: dict[str, Any]) -> None:
        """Turns a parameter's state of another implementation or version, if it is known, into ours."""

    # ---- groups

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group, checked like those given to the constructor."""
        self._plan = None
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except (ValueError, TypeError) as error:
            index = len(self.param_groups) - 1
            self.param_groups.pop()
            raise type(error)(f"{self.card.title}, parameter group {index}: {error}") from None

    def _check_group(self, group: Group) -> None:
        for key in group.keys() - self.defaults.keys() - {"params", "param_names"}:
            if key in OPTIMIZER_WIDE:
                raise ValueError(f"{key} is an option of the whole optimizer: give it to the constructor")
            if near := difflib.get_close_matches(key, self.defaults, n=1, cutoff=0.8):
                raise ValueError(f"unknown key {key!r}: did you mean {near[0]!r}?")
        for name in ("lr", "eps", "weight_decay"):
            group[name] = number(name, group[name])
        group["betas"] = self._check_betas(group["betas"])
        for name, option in inspect.signature(type(self)).parameters.items():
            if isinstance(option.default, bool) and not isinstance(group.get(name, False), bool):
                raise TypeError(f"{name}={group[name]!r}: use True or False")
        for i, p in enumerate(group["params"]):
            name = group["param_names"][i] if "param_names" in group else f"parameter {i}"
            if p.is_complex():
                raise ValueError(f"{name} is complex ({p.dtype}): optimize torch.view_as_real of it")
            if p.dtype not in self.card.dtypes:
                supported = ", ".join(map(str, self.card.dtypes))
                raise ValueError(f"{name} has dtype {p.dtype}; supported are {supported}")
            if self.fused and (reason := self._why_not_fused(p)):
                raise ValueError(
                    f"fused=True cannot update {name}: {reason}; fused=None picks a path that works"
                )

    def _check_betas(self, betas: Any) -> tuple[float, ...]:
        count = self.card.betas
        if isinstance(betas, str) or not isinstance(betas, Iterable):
            raise TypeError(f"betas={betas!r}: give {count} numbers in [0, 1)")
        values = tuple(float(number(f"betas[{i}]", beta)) for i, beta in enumerate(betas))
        if len(values) != count:
            raise ValueError(f"betas={values}: give {count} numbers, not {len(values)}")
        if max(values) >= 1:
            raise ValueError(f"betas={values}: each must be in [0, 1)")
        return values

    # ---- paths

    def _why_not_fused(self, p: Tensor) -> str:
        return native.why_not_fused(self.card, local(p))

    def _path(self, p: Tensor) -> str:
        """The path that a parameter takes as it is now: the fastest that is allowed and works."""
        if self.fused or (self.fused is None and self.foreach is None):
            reason = self._why_not_fused(p)
            if not reason:
                return "fused"
            if self.fused:
                raise RuntimeError(f"{self.card.title}(fused=True) cannot go on: {reason}")
        return "reference" if self.foreach is False else "foreach"

    @property
    def path(self) -> str:
        """The path or paths in use, e.g. "fused (CPU, AVX2)"."""
        names = {self._path(p) for group in self.param_groups for p in group["params"]}
        library, _ = native.load()
        detail = f" (CPU, {library.instruction_set})" if library else ""
        return " + ".join(name + detail if name == "fused" else name for name in sorted(names))

    # ---- the step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step on every parameter that has a gradient.

        Args:
            closure: evaluates the model and returns the loss; called once, before anything else.

        Returns:
            What the closure returned, or None.

        Raises:
            FloatingPointError: for a gradient that is not finite, with nonfinite="raise".
            RuntimeError: for a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    # Under torch.compile the step runs as it is. It is one kernel already, and numbers that change from
    # step to step (the step count, a learning rate) would have a traced step compiled again every time.
    @_disable_dynamo
    def _update(self) -> None:
        plan = self._plan
        if plan is None or not plan.holds(self):
            plan = self._collect()
        proceed, scale = self._gradient_scale()
        if proceed:
            for batch in plan.batches:
                factor = -1.0 if batch.group["maximize"] else 1.0
                if batch.table is not None:
                    factor *= 1.0 if scale is None else float(scale)
                    batch.table.step(self.fused_hyper(batch.group), factor)
                else:
                    self._update_unfused(batch, factor, scale)

    @torch.no_grad()
    def _collect(self) -> Plan:
        """Sorts the parameters that have a gradient into batches, making states where there are none."""
        batches: dict[tuple[Any, ...], Batch] = {}
        idle = []
        reusable = True
        for index, group in enumerate(self.param_groups):
            for p in group["params"]:
                g = p.grad
                if g is None:
                    idle.append(p)
                    continue
                if g.layout != torch.strided:
                    raise RuntimeError(
                        f"{self.card.title} does not support sparse gradients (parameter of shape "
                        f"{tuple(p.shape)}): use sparse=False in the layer, or torch.optim.SparseAdam for it"
                    )
                state = self.state[p]
                self._fit_state(p, state)
                path = self._path(p)
                if path == "fused" and g.dtype != p.dtype:
                    if self.fused:
                        raise RuntimeError(f"fused=True: a gradient is {g.dtype}, its parameter {p.dtype}")
                    path = "foreach"
                if is_dtensor(p):
                    g = g.redistribute(p.device_mesh, p.placements) if is_dtensor(g) else g
                    p, g, state = local(p), local(g), {name: local(x) for name, x in state.items()}
                    reusable = False
                if path == "fused" and not same_layout(g, p):
                    g = torch.empty_like(p).copy_(g)
                    reusable = False
                batch = batches.setdefault((index, path, p.device, p.dtype), Batch(group, path))
                batch.params.append(p)
                batch.grads.append(g)
                batch.states.append(state)
        groups = [(group, native.Members(group["params"])) for group in self.param_groups]
        plan = Plan(list(batches.values()), groups, idle, native.Members(self.state))
        for batch in plan.batches:
            if batch.path == "fused":
                names = tuple(self.card.states)
                batch.table = native.Table(self.card.name, batch.params, batch.grads, batch.states, names)
        if reusable and all(batch.table for batch in plan.batches):
            for batch in plan.batches:
                batch.grads = []  # the parameters hold them; here they would outlive zero_grad()
            self._plan = plan
        else:
            self._plan = None
        return plan

    def _gradient_scale(self) -> tuple[bool, Tensor | None]:
        """Whether to make this step, and the factor on all gradients (unscaling times clipping), if any."""
        found_inf, loss_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is not None and found_inf.item():
            return False, None
        scale = None if loss_scale is None else loss_scale.double().reciprocal()
        if self.max_grad_norm == 0 and self.nonfinite == "propagate":
            return True, scale
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not grads:
            return True, scale
        norm = global_norm(grads)
        if self.nonfinite != "propagate" and not math.isfinite(norm.item()):
            if self.nonfinite == "raise":
                raise FloatingPointError(
                    f"the norm of the gradients is {norm.item()}; nothing was changed by this step"
                )
            return False, None
        if self.max_grad_norm > 0:
            norm = norm if scale is None else norm * scale.to(norm.device)
            clip = (self.max_grad_norm / (norm + self.defaults["eps"])).clamp(max=1)
            scale = clip if scale is None else clip * scale.to(clip.device)
        return True, scale

    @torch.no_grad()
    def _update_unfused(self, batch: Batch, factor: float, scale: Tensor | None) -> None:
        for state in batch.states:
            state["step"] += 1
        t = [state["step"].item() for state in batch.states]
        work = torch.promote_types(batch.params[0].dtype, torch.float32)
        p, g = ([x.to(work) for x in tensors] for tensors in (batch.params, batch.grads))
        kept = {name: [state[name] for state in batch.states] for name in self.card.states}
        states = {name: [x.to(work) for x in tensors] for name, tensors in kept.items()}
        if scale is not None or factor != 1:
            by = factor if scale is None else factor * scale.to(p[0].device, work)
            g = list(torch._foreach_mul(g, by))
        if batch.path == "foreach":
            self.update_many(p, g, states, t, batch.group)
        else:
            for i in range(len(p)):
                self.update_one(p[i], g[i], {name: x[i] for name, x in states.items()}, t[i], batch.group)
        if work != batch.params[0].dtype:
            torch._foreach_copy_(batch.params, p)
            for name, tensors in kept.items():
                torch._foreach_copy_(tensors, states[name])

    # ---- state

    def _fit_state(self, p: Tensor, state: State) -> None:
        """Makes the state of a parameter, or lays it out anew where the parameter was moved or cast."""
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        for slot, name in enumerate(self.card.states):
            if name not in state:
                state[name] = zeros_like(p, slot)
            elif (
                state[name].dtype != p.dtype
                or state[name].device != p.device
                or not same_layout(local(state[name]), local(p))
            ):
                state[name] = zeros_like(p, slot).copy_(state[name])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict: ours, or one of the implementations that `adopt_state` knows.

        Hyper-parameters of the groups are taken from the checkpoint, as torch does. What belongs to the
        whole optimizer (path, clipping, non-finite policy) stays as it was constructed.

        Raises:
            ValueError: for a state of another optimizer or of a model with other shapes.
        """
        super().load_state_dict(self._adopt(state_dict))
        for p, state in self.state.items():
            for slot, name in enumerate(self.card.states):
                state[name] = zeros_like(p, slot).copy_(state[name])

    def _adopt(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        groups = [dict(group) for group in state_dict["param_groups"]]
        states = {index: dict(state) for index, state in state_dict["state"].items()}
        for saved, group in zip(
            groups, self.param_groups, strict=False
        ):  # torch says it if they do not match
            group_step = saved.pop("step", None)  # the official Adan counts steps per group
            for name in saved.keys() & {*OPTIMIZER_WIDE, "differentiable", "capturable"}:
                del saved[name]
            for name, value in self.defaults.items():
                saved.setdefault(name, value)
            for index, p in zip(saved["params"], group["params"], strict=False):
                if state := states.get(index):
                    if group_step is not None:
                        state.setdefault("step", group_step)
                    self.adopt_state(state)
                    self._check_state(f"parameter {index}", p, state)
                    state["step"] = torch.tensor(float(state["step"]), dtype=torch.float32)
        return {**state_dict, "state": states, "param_groups": groups}

    def _check_state(self, name: str, p: Tensor, state: dict[str, Any]) -> None:
        expected = {"step", *self.card.states}
        if state.keys() != expected:
            raise ValueError(
                f"not a checkpoint of {self.card.title}: the state of {name} is {sorted(state)}, "
                f"expected {sorted(expected)}"
            )
        for key in self.card.states:
            if state[key].shape != p.shape:
                raise ValueError(
                    f"a checkpoint of another model: {key} of {name} has shape {tuple(state[key].shape)}, "
                    f"the parameter {tuple(p.shape)}"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in OPTIMIZER_WIDE}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # which torch adds
        self._plan = None
