"""What all optimizers share: checks, state, the choice of a path, clipping, non-finite gradients, loading.

An optimizer adds its card, its hyper-parameters and its update rule three times over: `update_one` (the
definition, one tensor at a time), `update_many` (lists of tensors) and, in csrc/rules.h, the fused rule with
`fused_hyper` numbers. A rule is given float32 (or float64) tensors to work on; how they are kept is not its
business. Rules that need more than an element's own values (norms, means) are given whole parameters, also
where a parameter is a DTensor: its operations then are those of DTensors.
"""

import contextlib
import copy
import difflib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT, _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils._pytree import tree_map

from .card import Card, FusedRule
from .checks import known_options, number, one_of, plain_number
from .engine import cuda, native, storage
from .engine.amp import StepScaling
from .engine.contract import check_state, overlapping, why_not_plain, why_not_written
from .engine.layout import is_dense, is_plain, same_layout
from .engine.norm import as_copy_for, as_part_of, global_norm, is_dtensor, local
from .engine.storage import Names, State, Storage
from .interop.convert import STATE_NAMES, refuse_options

Group = dict[str, Any]
_MISSING = object()

# Options of the whole optimizer; everything else is a hyper-parameter of a group.
OPTIMIZER_WIDE = ("max_grad_norm", "nonfinite", "foreach", "fused", "take_gradients", "capturable")
# Options of a group that a checkpoint does not change, because they say how its states are kept.
STORAGE_OPTIONS = ("state_dtype", "min_int8_size", "param_rounding")

ANOTHER_MODEL = "a checkpoint of another model, or of its parameters in another order"


class Options(TypedDict, total=False):
    """What every optimizer accepts, after its own arguments; see `Optimizer`."""

    maximize: bool
    nonfinite: str
    state_dtype: str | None
    min_int8_size: int
    param_rounding: str
    capturable: bool
    differentiable: bool


@dataclass
class Batch:
    """Tensors that one path updates together: one group, one device, one dtype, kept alike.

    `owners` are the parameters as the user knows them and their states; params, grads and states are what
    this process holds of them.
    """

    group: Group
    path: str
    storage: Storage
    names: Names
    owners: list[tuple[Tensor, State]] = field(default_factory=list)
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    table: native.Table | None = None
    factors: list[native.Factors] = field(default_factory=list)
    first: native.Table | None = None  # of a rule in two passes
    block_sums: list[Tensor] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)  # of `fill_factors`, made once


class Row(NamedTuple):
    """A parameter that has a gradient: the batch it is for, and what the path works on, local tensors."""

    key: tuple[Any, ...]
    batch: Batch
    owner: tuple[Tensor, State]
    p: Tensor
    g: Tensor
    state: State
    is_lasting: bool  # the gradient is the parameter's own: the next step finds the next one in its place


@dataclass
class Plan:
    """Fused batches that the next step can use again, and what must not have changed until then."""

    batches: list[Batch]
    groups: list[tuple[Group, native.Members, list[Any]]]  # the groups, their parameters, and their options
    idle: list[Tensor]  # parameters without a gradient
    states: native.Members  # all state dicts of the optimizer

    def holds(self, optimizer: "Optimizer") -> bool:
        """Takes over the new gradients; False where a tensor moved or another parameter has a gradient."""
        return (
            len(self.groups) == len(optimizer.param_groups)
            and all(
                old is new and params.unchanged(new["params"]) and options == optimizer._options(new)
                for (old, params, options), new in zip(self.groups, optimizer.param_groups, strict=True)
            )
            and all(p.grad is None for p in self.idle)
            and self.states.unchanged(optimizer.state)
            and all(
                table is not None and table.refresh()
                for batch in self.batches
                for table in ([batch.table, batch.first] if batch.first else [batch.table])
            )
        )


def _hooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step with its hooks and its name in profiles: torch's wrapper, only where there is either.

    Most of its time goes into the name, which only a running
    profiler reads. An execution trace that runs without torch.profiler does not see it.
    """
    watched = torch.optim.Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def light(self: "Optimizer", *args: Any, **kwargs: Any) -> Any:
        is_watched = (
            torch._C._autograd._profiler_enabled()
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
        )
        return (watched if is_watched else step)(self, *args, **kwargs)

    light.hooked = True  # type: ignore[attr-defined]  # for torch, which else wraps it once more
    return light


class Optimizer(torch.optim.Optimizer):
    """Base class of the optimizers in this package.

    Steps are counted per parameter: one that is frozen, unfrozen or without a gradient for a while behaves
    as if it had an optimizer of its own. Gradients are never changed: after `GradScaler.step` without
    `unscale_` they are still scaled.

    Args:
        params: tensors, named tensors, or groups of them, as for any torch optimizer.
        hyper: hyper-parameters of a group with their defaults; checked for each group. `lr` may be a
            one-element tensor.
        max_grad_norm: gradients are scaled by min(1, max_grad_norm / (norm + eps)), where norm is the L2
            norm over all groups (over all shards of DTensors) and eps the constructor's, if the rule has one.
            0 is off.
        nonfinite: what to do when the norm of the gradients is inf or NaN: "propagate" computes with them,
            "skip" leaves the step out, "raise" raises FloatingPointError; in both nothing is changed, and
            both wait for the device.
        foreach, fused: None picks the fastest path that works, for each tensor. fused=True goes before
            foreach; foreach=False without fused=True is the reference path.
        take_gradients: of optimizers that keep the previous gradient, see `Card.previous`.
        maximize: ascend instead of descend.
        state_dtype: how states are kept: None in the parameter's dtype, rounded to nearest; "float32";
            "bfloat16" with stochastic rounding; "int8", 8-bit codes in blocks of 256 with a float32 scale
            each, rounded stochastically. Also as a key of a group.
        min_int8_size: with "int8", tensors of fewer elements than this keep float32 states.
        param_rounding: of bfloat16 parameters: "nearest", which loses updates below half a unit in the last
            place; "stochastic"; or "kahan", which keeps what was rounded off in 2 more bytes.
        capturable: demand that every parameter takes the fused CUDA path, which a CUDA graph can capture.
        differentiable: refused; it is here because torch's optimizers have it.

    Raises:
        ValueError, TypeError: for a hyper-parameter that makes no sense, an unknown key, a parameter that
            is complex or not a floating-point tensor, or a path that cannot run.
    """

    card: ClassVar[Card]
    decoupled: ClassVar[bool] = True  # weight decay shrinks the parameter; else it is added to the gradient
    resizable: ClassVar[bool] = (
        True  # whether states of rows mean something by themselves: optim.resize_state
    )
    _step_supports_amp_scaling = StepScaling()

    def __init__(
        self,
        params: ParamsT,
        hyper: Group,
        *,
        max_grad_norm: float = 0.0,
        foreach: bool | None = None,
        fused: bool | None = None,
        take_gradients: bool = False,
        maximize: bool = False,
        nonfinite: str = "propagate",
        state_dtype: str | None = None,
        min_int8_size: int = 4096,
        param_rounding: str = "nearest",
        capturable: bool = False,
        differentiable: bool = False,
        **unknown: Any,
    ) -> None:
        if unknown:
            accepted = [
                name for name in list(inspect.signature(type(self)).parameters)[1:] if name not in unknown
            ]
            known_options(type(self).__name__, unknown, accepted)
        if differentiable:
            raise ValueError(
                f"differentiable=True: {self.card.title} updates its states in place, where autograd cannot "
                "follow; leave it False"
            )
        one_of("nonfinite", nonfinite, ("propagate", "skip", "raise"))
        for name, flag in {"foreach": foreach, "fused": fused}.items():
            if flag not in (None, True, False):
                raise TypeError(f"{name}={flag!r}: use None, True or False")
        for name, flag in {"take_gradients": take_gradients, "capturable": capturable}.items():
            if not isinstance(flag, bool):
                raise TypeError(f"{name}={flag!r}: use True or False")
        if take_gradients and not self.card.previous:
            raise TypeError(
                f"{self.card.title} has no option 'take_gradients': it keeps no previous gradient"
            )
        if capturable and (take_gradients or nonfinite != "propagate"):
            raise ValueError(
                "capturable=True needs take_gradients=False and nonfinite='propagate': a graph has its "
                "gradients at fixed addresses and cannot ask the host what to do"
            )
        self.max_grad_norm = float(number("max_grad_norm", max_grad_norm))
        self.nonfinite, self.foreach, self.fused = nonfinite, foreach, fused
        self.take_gradients, self.capturable = take_gradients, capturable
        self._plan: Plan | None = None
        self._checked: list[list[Any]] = []  # the hyper-parameters of each group, as a step last found them
        hyper |= dict(
            maximize=maximize,
            state_dtype=state_dtype,
            min_int8_size=min_int8_size,
            param_rounding=param_rounding,
        )
        super().__init__(params, hyper)
        if any(map(self._loses_squares, self.param_groups)):
            warnings.warn(
                f"{self.card.title} keeps mean squares of gradients in float16, where those of gradients "
                "below about 1e-3 round to zero and steps become several times too long: use "
                "state_dtype='float32'",
                stacklevel=3,
            )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Shows what a constructor passes on by `**options` in its signature, where tools and people look."""
        super().__init_subclass__(**kwargs)
        if "__init__" not in vars(cls):
            return
        signature = inspect.signature(cls.__init__)
        kept = list(signature.parameters.values())[1:]  # without self
        own = [p for p in kept if p.kind != p.VAR_KEYWORD]
        if len(own) < len(kept):
            parent = next(base for base in cls.__mro__[1:] if issubclass(base, Optimizer))
            inherited = inspect.signature(parent).parameters
            names = list(Options.__annotations__) if parent is Optimizer else list(inherited)[1:]
            own += [
                inherited[name].replace(kind=inspect.Parameter.KEYWORD_ONLY)
                for name in names
                if name not in signature.parameters
                and inherited[name].kind != inspect.Parameter.VAR_POSITIONAL
            ]
        cls.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]

    # ---- the update rule: what a subclass gives

    def update_one(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        """Updates the parameter p and its state in place from the gradient g at step t = 1, 2, ..."""
        raise NotImplementedError

    @classmethod
    def of_model(cls, model: nn.Module, groups: list[Group], **options: Any) -> "Optimizer":
        """Builds the optimizer for groups of a model's parameters; for rules that ask the model for more."""
        return cls(groups, **options)

    def names_of(self, p: Tensor, group: Group) -> Names:
        """The states of a parameter."""
        return Names(tuple(self.card.states))

    def check_options(self, group: Group) -> None:
        """Refuses options of a group, besides those that all optimizers have, that make no sense."""

    def check_state(self, where: str, p: Tensor, state: State, group: Group) -> None:
        """Checks the states of a parameter before a step; `where` is what messages call it.

        Raises:
            RuntimeError, ValueError: they are not those of this parameter.
        """
        check_state(where, self.card, self.names_of(p, group), p, state)

    def update_many(
        self, p: list[Tensor], g: list[Tensor], state: dict[str, list[Tensor]], t: list[float], group: Group
    ) -> None:
        """The same for lists of tensors, of which g must not be changed."""
        raise NotImplementedError

    def fused_hyper(self, group: Group) -> tuple[float, ...]:
        """The numbers of the fused rule's Hyper struct (csrc/rules.h), in its order."""
        raise NotImplementedError

    def fused_rules(self, names: Names) -> tuple[FusedRule, ...]:
        """The rule of the fused path for parameters with these states; or two, for its passes."""
        return self.card.fused_rules

    def make_factors(self, p: Tensor, group: Group) -> native.Factors:
        """Memory for the factors of a parameter, where the fused rule takes them."""
        raise NotImplementedError

    def fill_factors(self, batch: Batch, grads: list[Tensor], scale: float | Tensor) -> None:
        """Computes `batch.factors` for the step that comes; scale is the factor on the gradients.

        Of two passes this comes between them, when `batch.block_sums` are there. Step counts are those
        before the step, or after the first of two passes. On a GPU nothing may wait for the device.
        """
        raise NotImplementedError

    def adopt_state(self, state: dict[str, Any]) -> None:
        """Turns a parameter's state of another implementation or version, if it is known, into ours."""

    # ---- groups

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group, checked like those given to the constructor."""
        self._plan = None
        super().add_param_group(param_group)
        try:
            with self._of_group(len(self.param_groups) - 1):
                self._check_group(self.param_groups[-1])
        except (ValueError, TypeError):
            self.param_groups.pop()
            raise

    @contextlib.contextmanager
    def _of_group(self, index: int) -> Iterator[None]:
        """Says in an error of a check which group it is about."""
        try:
            yield
        except (ValueError, TypeError) as error:
            raise type(error)(f"{self.card.title}, parameter group {index}: {error}") from None

    def _check_group(self, group: Group) -> None:
        for key in group.keys() - self.defaults.keys() - {"params", "param_names"}:
            if key in OPTIMIZER_WIDE:
                if group[key] == getattr(self, key):  # ZeroRedundancyOptimizer repeats them in the groups
                    continue
                raise ValueError(f"{key} is an option of the whole optimizer: give it to the constructor")
            if near := difflib.get_close_matches(key, self.defaults, n=1, cutoff=0.8):
                raise ValueError(f"unknown key {key!r}: did you mean {near[0]!r}?")
        self._check_hyper(group, self.defaults)
        self.check_options(group)
        for i, p in enumerate(group["params"]):
            name = group["param_names"][i] if "param_names" in group else f"parameter {i}"
            if p.is_complex():
                raise ValueError(f"{name} is complex ({p.dtype}): optimize torch.view_as_real of it")
            if p.dtype not in self.card.dtypes:
                supported = ", ".join(map(str, self.card.dtypes))
                raise ValueError(f"{name} has dtype {p.dtype}; supported are {supported}")
            if p.dtype == torch.float64 and group["state_dtype"] is not None:
                raise ValueError(
                    f"state_dtype={group['state_dtype']!r}: {name} is float64, and so are its states; "
                    "leave it None in its group"
                )
            if p.dtype == torch.float16 and group["param_rounding"] != "nearest":
                raise ValueError(
                    f"param_rounding={group['param_rounding']!r} is for bfloat16, and {name} is float16"
                )
            if group["state_dtype"] == "int8" and is_dtensor(p):
                raise ValueError(
                    f"state_dtype='int8': {name} is a DTensor, whose shards do not end where blocks do; "
                    "use 'bfloat16'"
                )
            if self.fused and (reason := self.why_not_fused(p, group)):
                raise ValueError(
                    f"fused=True cannot update {name}: {reason}; fused=None picks a path that works"
                )
            if self.capturable and (p.device.type != "cuda" or self._path(p, group) != "fused"):
                reason = self.why_not_fused(p, group) or f"it is on {p.device}, or another path was asked for"
                raise ValueError(f"capturable=True needs {name} on the fused CUDA path: {reason}")
            if self.capturable and any(rule.factors for rule in self.card.fused_rules):
                raise ValueError(
                    f"capturable=True: a step of {self.card.title} is more than its kernels, "
                    "and is not captured"
                )

    def _check_hyper(self, group: Group, names: Iterable[str]) -> None:
        """Checks hyper-parameters of a group; `names` are those that are new, of `defaults`."""
        for name in names:
            if name not in group:
                raise ValueError(f"the group has no {name!r} any more")
            value = group[name]
            if name in ("lr", "eps", "weight_decay"):
                group[name] = (number if name == "lr" else plain_number)(name, value)
            elif name == "betas":
                group[name] = self._check_betas(value)
            elif name == "state_dtype":
                one_of(name, value, (None, *storage.STATE_DTYPES))
            elif name == "param_rounding":
                one_of(name, value, storage.ROUNDINGS)
            elif name == "min_int8_size":
                if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                    raise ValueError(f"{name}={value!r}: give a number of elements >= 0")
            elif name in self._flags() and not isinstance(value, bool):
                raise TypeError(f"{name}={value!r}: use True or False")

    @classmethod
    @functools.cache
    def _flags(cls) -> frozenset[str]:
        """The options that are True or False."""
        parameters = inspect.signature(cls).parameters.items()
        return frozenset(name for name, option in parameters if isinstance(option.default, bool))

    def _check_changes(self) -> None:
        """Checks the hyper-parameters that changed since the step before, as schedulers change them."""
        now = [[group.get(name, _MISSING) for name in self.defaults] for group in self.param_groups]
        if now == self._checked:
            return
        for index, (group, values) in enumerate(zip(self.param_groups, now, strict=True)):
            old = self._checked[index] if index < len(self._checked) else [_MISSING] * len(values)
            changed = [
                name for name, x, y in zip(self.defaults, old, values, strict=True) if x is _MISSING or x != y
            ]
            with self._of_group(index):
                self._check_hyper(group, changed)
                if self.card.options.keys() & set(changed):
                    self.check_options(group)
        self._checked = [[group[name] for name in self.defaults] for group in self.param_groups]

    def _loses_squares(self, group: Group) -> bool:
        """Whether a group has float16 states whose numbers are too small for that type."""
        small = [p for p in group["params"] if p.dtype == torch.float16 and group["state_dtype"] is None]
        squares = set(self.card.nonnegative) & set(self.card.states)
        return bool(squares) and any(squares.intersection(self.names_of(p, group).full) for p in small)

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

    def _options(self, group: Group) -> list[Any]:
        """The options of a group that may decide on states and paths."""
        return [group.get(name) for name in (*self.card.options, *STORAGE_OPTIONS)]

    # ---- paths

    def why_not_fused(self, p: Tensor, group: Group) -> str:
        """Why no fused kernel can update a parameter with the options of its group; empty if one can."""
        if is_dtensor(p) and not self.card.elementwise:
            return f"the update rule of {self.card.title} looks at whole tensors, and this is a DTensor"
        kept = Storage.of(p, group, self.take_gradients)
        small = p.dtype.itemsize < 4 or kept.state in ("bfloat16", "int8")
        if small and not all(rule.small for rule in self.card.fused_rules):
            return f"{self.card.title} needs parameters and states in float32 or float64 there"
        return why_not_fused(self.card, local(p))

    def _path(self, p: Tensor, group: Group) -> str:
        """The path that a parameter takes as it is now: the fastest that is allowed and works."""
        if self.fused or (self.fused is None and self.foreach is None):
            reason = self.why_not_fused(p, group)
            if not reason:
                return "fused"
            if self.fused:
                raise RuntimeError(f"{self.card.title}(fused=True) cannot go on: {reason}")
        whole = is_dtensor(p) and not self.card.elementwise
        foreign = self.foreach is None and not is_plain(local(p))
        is_plainly = self.foreach is False or whole or foreign or "foreach" not in self.card.paths
        return "reference" if is_plainly else "foreach"

    @property
    def path(self) -> str:
        """The path or paths in use, e.g. "fused (CPU, AVX2)"."""
        names = {
            f"fused ({_kernels(p.device.type)})" if (path := self._path(p, group)) == "fused" else path
            for group in self.param_groups
            for p in group["params"]
        }
        return " + ".join(sorted(names))

    # ---- the step

    @_hooked
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
        on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        if on_cuda and not self.capturable and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a CUDA graph is being captured: construct the optimizer with capturable=True")
        self._check_changes()
        plan = self._plan
        is_new = plan is None or not plan.holds(self)
        if plan is None or is_new:
            plan = self._collect()
        # factors are made by operations of torch, which no found_inf on the device could leave out
        on_device = all(
            isinstance(batch.table, cuda.CudaTable) and not batch.factors for batch in plan.batches
        )
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and not on_device and found_inf.item():
            return
        proceed, scale = self._gradient_scale()
        if not proceed:
            return
        for batch in plan.batches:
            factor = -1.0 if batch.group["maximize"] else 1.0
            if batch.table is not None:
                lr = batch.group["lr"]
                lr = lr if on_device and isinstance(lr, Tensor) and lr.is_cuda else None
                hyper = self.fused_hyper(batch.group if lr is None else {**batch.group, "lr": 0.0})
                if batch.first is not None:
                    batch.first.step(hyper, factor, scale)
                if batch.factors:
                    grads = [p.grad for p in batch.params] if not batch.grads else batch.grads
                    by = factor if scale is None else factor * scale
                    self.fill_factors(batch, grads, by)  # type: ignore[arg-type]
                batch.table.step(hyper, factor, scale, lr=lr, found_inf=found_inf)
                if is_new:
                    batch.table.bump_versions()
            else:
                self._update_unfused(batch, factor, scale)
            if batch.storage.taken:
                for p, state in batch.owners:
                    assert p.grad is not None
                    # detached, so that a graph of create_graph=True is not kept until the next step
                    state["pre_grad"] = p.grad.detach() if p.grad.requires_grad else p.grad
                    p.grad = None
                if batch.table is not None:
                    batch.table.hold_gradients()

    @torch.no_grad()
    def _collect(self) -> Plan:
        """Sorts the parameters that have a gradient into batches, making states where there are none."""
        rows, idle = [], []
        for index, group in enumerate(self.param_groups):
            for place, p in enumerate(group["params"]):
                if p.grad is None:
                    idle.append(p)
                else:
                    rows.append(self._row(index, place, p, p.grad))
        rows = self._apart(rows)
        batches: dict[tuple[Any, ...], Batch] = {}
        for row in rows:
            batch = batches.setdefault(row.key, row.batch)
            batch.owners.append(row.owner)
            batch.params.append(row.p)
            batch.grads.append(row.g)
            batch.states.append(row.state)
        groups = [
            (group, native.Members(group["params"]), self._options(group)) for group in self.param_groups
        ]
        plan = Plan(list(batches.values()), groups, idle, native.Members(self.state))
        for batch in plan.batches:
            if batch.path == "fused":
                make = cuda.CudaTable if batch.params[0].is_cuda else native.CpuTable
                kinds = native.kinds(batch.params[0], batch.storage)
                tensors = (kinds, batch.params, batch.grads, batch.states)
                others = (*batch.names.full, *(name for name, _ in batch.names.small))
                *first, rule = self.fused_rules(batch.names)
                if rule.factors:
                    batch.factors = [self.make_factors(p, batch.group) for p in batch.params]
                if first:
                    batch.block_sums = [block_sums(p, first[0].sums) for p in batch.params]
                    batch.first = make(first[0], *tensors, (), batch.block_sums, others)
                batch.table = make(rule, *tensors, batch.factors, (), others)
        if all(row.is_lasting for row in rows) and all(batch.table for batch in plan.batches):
            for batch in plan.batches:
                batch.grads = []  # the parameters hold them; here they would outlive zero_grad()
            self._plan = plan
        else:
            self._plan = None
        return plan

    def _row(self, index: int, place: int, p: Tensor, g: Tensor) -> Row:
        """A parameter with its gradient and its states as the fastest possible path takes them."""
        group = self.param_groups[index]
        where = (
            f"parameter {group['param_names'][place] if 'param_names' in group else place} of group {index}"
        )
        if g.layout != torch.strided:
            raise RuntimeError(
                f"{self.card.title} does not support sparse gradients (parameter of shape "
                f"{tuple(p.shape)}): use sparse=False in the layer, or torch.optim.SparseAdam for it"
            )
        if g.shape != p.shape or g.device != p.device or is_dtensor(g) != is_dtensor(p):
            raise RuntimeError(
                f"{where} is {tuple(p.shape)} on {p.device}, and its gradient {tuple(g.shape)} on {g.device}"
                f"{' (one of them a DTensor)' if is_dtensor(g) != is_dtensor(p) else ''}: call zero_grad() "
                "after replacing a parameter's data"
            )
        path = self._path(p, group)
        if path == "fused" and g.dtype != p.dtype:
            if self.fused:
                raise RuntimeError(f"fused=True: a gradient is {g.dtype}, its parameter {p.dtype}")
            path = "foreach"
        if is_dtensor(g):
            g = g.redistribute(p.device_mesh, p.placements)  # type: ignore[attr-defined]
        if path == "fused":
            if not is_plain(local(g)):
                path = "reference"
            elif not same_layout(local(g), local(p)) or why_not_plain(local(g)):
                g = torch.empty_like(p).copy_(g)
        kept = Storage.of(p, group, self.take_gradients)
        is_lasting = g is p.grad and not is_dtensor(p)
        if kept.taken:
            own = self._takeable(p, g)
            is_lasting = is_lasting and own is p.grad
            p.grad = g = own
        names, state = self.names_of(p, group), self.state[p]
        self.check_state(where, p, state, group)
        kept.fit(self.card, names, p, state, p.device if path == "fused" else "cpu")
        batch = Batch(group, path, kept, names)
        key = (index, path, p.device, p.dtype, kept, names.full, *(name for name, _ in names.small))
        owner = (p, state)
        if is_dtensor(p):
            p, g, state = local(p), local(g), {name: local(x) for name, x in state.items()}
        return Row(key, batch, owner, p, g, state, is_lasting)

    def _apart(self, rows: list[Row]) -> list[Row]:
        """The same rows, where those that share memory with another are updated after each other."""
        plain = [i for i, row in enumerate(rows) if is_plain(row.p)]
        written = [[rows[i].p] for i in plain]
        for tensors, i in zip(written, plain, strict=True):
            if rows[i].batch.path == "fused":
                tensors += [
                    x
                    for name, x in rows[i].state.items()
                    if name in rows[i].batch.names.full or name == "step"
                ]
        for at in overlapping(written):
            i = plain[at]
            batch = replace(rows[i].batch, path="reference")
            rows[i] = rows[i]._replace(key=(*rows[i].key, i), batch=batch)
        return rows

    def _takeable(self, p: Tensor, g: Tensor) -> Tensor:
        """A gradient that can be kept: of the parameter's dtype, and not in memory that others write to."""
        if not is_dtensor(g) and g._is_view():
            raise RuntimeError(
                f"take_gradients=True: the gradient of a parameter of shape {tuple(p.shape)} is a view of "
                "other memory, as in DDP's buckets, which would be overwritten: use "
                "gradient_as_bucket_view=False, or take_gradients=False"
            )
        shared = not is_dtensor(g) and g.untyped_storage().nbytes() > g.numel() * g.element_size()
        return torch.empty_like(p).copy_(g) if shared or g.dtype != p.dtype else g

    def _gradient_scale(self) -> tuple[bool, Tensor | None]:
        """Whether to make this step, and the factor on all gradients (unscaling times clipping), if any."""
        loss_scale = getattr(self, "grad_scale", None)
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
            clip = (self.max_grad_norm / (norm + self.defaults.get("eps", 0.0))).clamp(max=1)
            scale = clip if scale is None else clip * scale.to(clip.device)
        return True, scale

    @torch.no_grad()
    def _update_unfused(self, batch: Batch, factor: float, scale: Tensor | None) -> None:
        card, kept, states = self.card, batch.storage, batch.states
        for state in states:
            state["step"] += 1
        t = [state["step"].item() for state in states]
        work = torch.promote_types(batch.params[0].dtype, torch.float32)
        p, g = ([x.to(work) for x in tensors] for tensors in (batch.params, batch.grads))
        by: Any = factor if scale is None else factor * scale.to(p[0].device, work)
        if scale is not None or factor != 1:
            g = list(torch._foreach_mul(g, by))
        values = {}
        for name in batch.names.full:
            if kept.taken and name == card.previous:
                values[name] = [-s["pre_grad_scale"].to(work) * s["pre_grad"].to(work) for s in states]
            else:
                values[name] = [storage.load(s, name, name not in card.nonnegative).to(work) for s in states]
        if kept.rounding == "kahan":
            torch._foreach_add_(p, [s["compensation"].to(work) for s in states])
        for name, _ in batch.names.small:
            values[name] = [state[name] for state in states]
        if batch.path == "foreach":
            self.update_many(p, g, values, t, batch.group)
        else:
            for i, (owner, _) in enumerate(batch.owners):
                x, y, state = p[i], g[i], {name: x[i] for name, x in values.items()}
                if is_dtensor(owner) and not card.elementwise:
                    x, y = as_part_of(owner, x), as_part_of(owner, y)
                    for name, value in state.items():
                        wrap = as_part_of if name in batch.names.full else as_copy_for
                        state[name] = wrap(owner, value)
                self.update_one(x, y, state, t[i], batch.group)
        small = kept.state in ("bfloat16", "int8")
        for i, (x, state) in enumerate(zip(batch.params, states, strict=True)):
            noisy = small or kept.rounding == "stochastic"
            words = storage.noise(int(t[i]), x.numel(), x.device) if noisy else None
            for slot, name in enumerate(card.states):
                if name not in batch.names.full:
                    continue
                if kept.taken and name == card.previous:
                    state["pre_grad_scale"].fill_(by)
                else:
                    signed, noise = name not in card.nonnegative, words if small else None
                    storage.store(state, name, slot, values[name][i], signed, noise)
            if kept.rounding == "stochastic":
                assert words is not None
                rounded = torch.empty_like(p[i], dtype=x.dtype)  # dense, which x need not be
                flat = storage.flat(p[i])
                storage.flat(rounded).copy_(storage.to_bfloat16(flat, storage.noise_of_parameter(words)))
                x.copy_(rounded)
            elif x is not p[i]:
                x.copy_(p[i])
                if kept.rounding == "kahan":
                    state["compensation"].copy_(p[i] - x.to(work))

    # ---- state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict: ours, or one of the implementations that `adopt_state` knows.

        Hyper-parameters of the groups are taken from the checkpoint, as torch does. What belongs to the
        whole optimizer (path, clipping, non-finite policy) stays as it was constructed. Pre-hooks and
        post-hooks work as in torch; what the pre-hooks return is what is checked. Entries that others keep in
        the state of a parameter are loaded as they are, on the parameter's device.

        Raises:
            ValueError: for a state of another optimizer or of a model with other shapes.
        """
        adopted: dict[str, Any] = {}

        def check(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            adopted.update(self._adopt(given))
            ours = {index for group in adopted["param_groups"] for index in group["params"]}
            rest = {key: value for key, value in adopted["state"].items() if key not in ours}
            return {**adopted, "state": rest}  # torch would cast states to the parameter's dtype

        def install(_: torch.optim.Optimizer) -> None:
            for saved, group in zip(adopted["param_groups"], self.param_groups, strict=True):
                for index, p in zip(saved["params"], group["params"], strict=True):
                    if state := adopted["state"].get(index):
                        self.state[p] = self._copy_state(p, state, group)

        # The check follows the other pre-hooks, which may replace what is loaded; the other post-hooks see
        # the states.
        hooks = (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(install, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _adopt(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        groups = [dict(group) for group in state_dict["param_groups"]]
        states = dict(state_dict["state"])
        # torch says it if their numbers do not match
        for number_of_group, (saved, group) in enumerate(zip(groups, self.param_groups, strict=False)):
            refuse_options(saved, known=self.defaults, decoupled=self.decoupled)
            saved.pop("decoupled_weight_decay", None)
            group_step = saved.pop("step", None)  # the official Adan counts steps per group
            for name in saved.keys() & {*OPTIMIZER_WIDE, "differentiable"}:
                del saved[name]
            saved |= {name: group[name] for name in STORAGE_OPTIONS}
            for name, value in self.defaults.items():
                saved.setdefault(name, value)
            for index, p in zip(saved["params"], group["params"], strict=False):
                if state := dict(states.get(index, {})):
                    states[index] = state
                    if group_step is not None:
                        state.setdefault("step", group_step)
                    self.adopt_state(state)
                    if own := _own_and_foreign(state)[0]:
                        self._check_state(f"parameter {index}", p, own, self.names_of(p, saved))
                        state["step"] = torch.tensor(float(state["step"]), dtype=torch.float32)
            with self._of_group(number_of_group):
                self._check_hyper(saved, self.defaults)
                self.check_options({**saved, "params": group["params"]})
        return {**state_dict, "state": states, "param_groups": groups}

    def _copy_state(self, p: Tensor, state: dict[str, Any], group: Group) -> dict[str, Any]:
        """A checked state in memory of its own: ours as the options say, entries of others as they are."""
        own, foreign = _own_and_foreign(state)
        if own:
            kept = Storage.of(p, group, self.take_gradients)
            own = kept.copy(self.card, self.names_of(p, group), p, own)
        copied: dict[str, Any] = tree_map(lambda x: _copied(x, p.device), foreign)
        return own | copied

    def _check_state(self, name: str, p: Tensor, state: dict[str, Any], names: Names) -> None:
        previous, small = self.card.previous, dict(names.small)
        required = {"step", *names.full, *small}
        if "pre_grad" in state and previous:
            required = required - {previous} | {"pre_grad"}
        scales = {f"{key}_scale" for key in required}
        if not required <= state.keys() <= required | scales | {"compensation"}:
            problem = f"the state of {name} is {sorted(state)}, expected {sorted(required)}"
            if self._is_of_another_parameter(p, state):
                raise ValueError(f"{ANOTHER_MODEL}: {problem} for shape {tuple(p.shape)}")
            raise ValueError(
                f"not a checkpoint of {self.card.title}: {problem}; optim.convert_state reads those of others"
            )
        for key in names.full:
            if key in state and (state[key].dtype == torch.uint8) != (f"{key}_scale" in state):
                raise ValueError(
                    f"not a checkpoint of {self.card.title}: {key} of {name} is {state[key].dtype}, and "
                    f"8-bit codes go with {key}_scale; one of the two is missing or was cast"
                )
        blocks = torch.Size([-(-p.numel() // storage.BLOCK)])
        for key in sorted(state.keys() - {"step", "pre_grad_scale"}):
            shape = torch.Size(small[key]) if key in small else blocks if key in scales else p.shape
            if state[key].shape != shape:
                raise ValueError(
                    f"{ANOTHER_MODEL}: {key} of {name} has shape {tuple(state[key].shape)}, "
                    f"expected {tuple(shape)} for a parameter of shape {tuple(p.shape)}"
                )

    def _is_of_another_parameter(self, p: Tensor, state: State) -> bool:
        """Whether a state that is not p's would be right for a parameter of another shape in p's group."""
        keys = {key for key in state if not key.endswith("_scale")} - {"compensation"}
        [group] = [group for group in self.param_groups if any(q is p for q in group["params"])]
        others = {self.names_of(q, group) for q in group["params"]} - {self.names_of(p, group)}
        return any({"step", *names.full, *dict(names.small)} == keys for names in others)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, as torch does; a taken gradient cannot be set to zero."""
        if self.take_gradients and not set_to_none:
            raise ValueError("take_gradients=True: the gradients are the optimizer's; use set_to_none=True")
        super().zero_grad(set_to_none)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in OPTIMIZER_WIDE}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # which torch adds
        self._plan, self._checked = None, []


def _own_and_foreign(state: dict[Any, Any]) -> tuple[State, dict[Any, Any]]:
    """A parameter's state in two: names that optimizers are known to use, and what others keep there."""
    cards = (cls.card for cls in Optimizer.__subclasses__() if hasattr(cls, "card"))
    known = STATE_NAMES.union(*((*card.states, *card.small) for card in cards))
    own = {key for key in state if isinstance(key, str) and key.removesuffix("_scale") in known}
    return {k: state[k] for k in state if k in own}, {k: state[k] for k in state if k not in own}


def _copied(x: Any, device: torch.device) -> Any:
    return x.detach().to(device, copy=True) if isinstance(x, Tensor) else copy.deepcopy(x)


def why_not_fused(card: Card, p: Tensor) -> str:
    """Why no fused kernel can update this parameter (a plain local tensor); empty if one can."""
    if reason := why_not_written(p):
        return reason
    kind = p.device.type
    if kind not in card.fused_devices:
        devices = " and ".join(card.fused_devices) or "no device"
        return f"{card.title} has fused kernels for {devices}, not for {kind}"
    if reason := cuda.why_not(p.device.index) if kind == "cuda" else native.load()[1]:
        return reason
    if not is_dense(p):
        return (
            f"a parameter of shape {tuple(p.shape)} and strides {p.stride()} does not fill its memory; "
            "make it .contiguous()"
        )
    return ""


def exact_params(batch: Batch) -> list[Tensor]:
    """The parameters with what is kept of their rounding, where that is done."""
    if batch.storage.rounding != "kahan":
        return batch.params
    return [p.float() + state["compensation"] for p, state in zip(batch.params, batch.states, strict=True)]


def one_factor(p: Tensor) -> native.Factors:
    """Memory for a single factor on all elements of a parameter."""
    work = torch.promote_types(p.dtype, torch.float32)
    return native.Factors(torch.empty(1, dtype=work, device=p.device), None, p.numel())


def set_factors(batch: Batch, values: Tensor) -> None:
    """Sets the single factors of a batch's parameters to the values [parameters]."""
    rows = [factors.rows for factors in batch.factors if factors.rows is not None]
    torch._foreach_copy_(rows, list(values.unsqueeze(1).unbind()))


def block_sums(p: Tensor, sums: int) -> Tensor:
    """Memory for the numbers that a rule adds up in each block of a parameter."""
    work = torch.promote_types(p.dtype, torch.float32)
    return torch.zeros((-(-p.numel() // storage.BLOCK), sums), dtype=work, device=p.device)


def _kernels(device: str) -> str:
    library, _ = native.load()
    return f"CPU, {library.instruction_set}" if device == "cpu" and library else "CUDA"


def state_bytes(optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of memory that an optimizer's states take in this process, by the name of the state."""
    total: dict[str, int] = {}
    for state in optimizer.state.values():
        for name, x in state.items():
            if isinstance(x, Tensor):
                total[name] = total.get(name, 0) + local(x).nbytes
    return total
