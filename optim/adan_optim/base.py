"""The base class of all optimizers: constructing one, stepping, adding groups, loading state dicts.

The work is done in engine/: checks.py checks arguments, plan.py chooses the path of each parameter, fused.py
and unfused.py carry out a step, checkpoint.py adapts a loaded state dict. rule.py declares what an optimizer
has to provide.
"""

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT, _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from typing_extensions import Unpack

from .engine import checkpoint, checks, fused, taken, unfused
from .engine.available import kernels
from .engine.checks import OPTIMIZER_WIDE
from .engine.dtensor import as_part_of, is_dtensor, local
from .engine.plan import Plan, collect, path_of
from .engine.rule import Group, UpdateRule
from .engine.scaling import StepScaling, gradient_scale
from .engine.storage import REST_NAMES, exact


class Options(TypedDict, total=False):
    """What every optimizer accepts, after its own arguments; see `Optimizer`."""

    maximize: bool
    caution: bool
    nonfinite: str
    state_dtype: str | None
    min_int8_size: int
    param_rounding: str
    capturable: bool
    process_group: Any
    differentiable: bool


def _is_profiling() -> bool:
    return torch._C._autograd._profiler_enabled()


if torch.__version__ < "2.11":  # torch.compile warns of this builtin in older versions
    _is_profiling = _disable_dynamo(_is_profiling)


def _hooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a step as torch does, for hooks and profiles, but skip the wrapper when it has nothing to do.

    The wrapper spends most of its time on a name that only a running profiler reads. An execution trace
    without torch.profiler does not see the name.
    """
    watched = torch.optim.Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def light(self: "Optimizer", *args: Any, **kwargs: Any) -> Any:
        is_watched = (
            _is_profiling()
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
        )
        return (watched if is_watched else step)(self, *args, **kwargs)

    light.hooked = True  # type: ignore[attr-defined]  # otherwise torch wraps it a second time
    return light


class Optimizer(UpdateRule):
    """Base class of the optimizers in this package.

    Steps are counted per parameter: one that is frozen, or has no gradient for a while, behaves as if it had
    an optimizer of its own. Gradients are never modified: after `GradScaler.step` without `unscale_` they are
    still scaled.

    Args:
        params: tensors, named tensors, or groups of them, as for any torch optimizer.
        hyper: hyper-parameters of a group and their defaults; checked for each group. `lr` may be a
            one-element tensor.
        max_grad_norm: gradients are scaled by min(1, max_grad_norm / (norm + eps)), where norm is the L2
            norm over all groups (over all shards of DTensors) and eps the constructor's, if the rule has one.
            0 turns clipping off.
        nonfinite: what to do when the norm of the gradients is inf or NaN: "propagate" computes with it,
            "skip" skips the step, "raise" raises FloatingPointError. The last two change nothing, and both
            wait for the device.
        foreach, fused: None picks the fastest path that works, for each tensor. fused=True overrides
            foreach; foreach=False without fused=True is the reference path.
        take_gradients: only for optimizers that keep the previous gradient; see `Card.previous`.
        maximize: ascend instead of descend.
        caution: elements whose step has another sign than their gradient do not make it, and the steps of the
            others are divided by their share of the tensor (arXiv 2411.16085; see engine/caution.py).
            Needs a first moment. On the fused path, of float32 and float64, it is a pass more, which reads
            the gradient and the states; a DTensor is updated as a whole.
        state_dtype: how states are stored: None in the parameter's dtype, rounded to nearest; "float32";
            "bfloat16" with stochastic rounding; "int8", 8-bit codes in blocks of 256 with a float32 scale
            each, rounded stochastically. May also be a key of a group.
        min_int8_size: with "int8", tensors of fewer elements than this keep float32 states.
        param_rounding: for bfloat16 parameters: "nearest", which loses updates below half a unit in the last
            place; "stochastic"; or, in 2 more bytes, "kahan", which keeps the rounding error, and "split",
            which keeps the lower half of a float32 number: steps are those of a float32 parameter.
        process_group: of torch.distributed ("world": all processes), whose optimizers have other parameters
            of the same model, as with ZeroRedundancyOptimizer: `max_grad_norm` and `nonfinite` take the norm
            over all of them. Every process makes every step, also one without gradients. Not for DTensors,
            whose norm is that of whole tensors anyway.
        capturable: require that every parameter takes the fused CUDA path, which a CUDA graph can capture.
        differentiable: must be False; it exists because torch's optimizers have it.

    Raises:
        ValueError, TypeError: for an invalid hyper-parameter, an unknown key, a parameter that is complex or
            not a floating-point tensor, or a path that cannot run.
    """

    # Whether a row's states are meaningful without the other rows; adan_optim.resize_state needs that.
    resizable: ClassVar[bool] = True
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
        caution: bool = False,
        nonfinite: str = "propagate",
        state_dtype: str | None = None,
        min_int8_size: int = 4096,
        param_rounding: str = "nearest",
        capturable: bool = False,
        process_group: Any = None,
        differentiable: bool = False,
        **unknown: Any,
    ) -> None:
        self._refuse(unknown)
        if isinstance(params, nn.Module):
            raise TypeError(
                f"{type(self).__name__} takes parameters, not a model: give model.parameters(), or use "
                "adan_optim.build_optimizer(model, ...)"
            )
        self.nonfinite, self.foreach, self.fused = nonfinite, foreach, fused
        self.take_gradients, self.capturable, self.process_group = take_gradients, capturable, process_group
        checks.check_switches(self, differentiable)
        self.max_grad_norm = float(checks.number("max_grad_norm", max_grad_norm))
        self._plan: Plan | None = None
        self._checked: list[list[Any]] = []  # the hyper-parameters of each group at the last step
        hyper |= dict(maximize=maximize, caution=caution, state_dtype=state_dtype)
        hyper |= dict(min_int8_size=min_int8_size, param_rounding=param_rounding)
        super().__init__(params, hyper)
        checks.warn_of_lost_squares(self)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show in the signature what a constructor passes on as `**options`, for tools and people."""
        super().__init_subclass__(**kwargs)
        if "__init__" not in vars(cls):
            return
        signature = inspect.signature(cls.__init__)
        kept = list(signature.parameters.values())[1:]  # without self
        own = [p for p in kept if p.kind != p.VAR_KEYWORD]
        if len(own) < len(kept):
            parent = next(
                base for base in cls.__mro__[1:] if issubclass(base, Optimizer) and "__init__" in vars(base)
            )
            inherited = inspect.signature(parent).parameters
            takes_common = parent is Optimizer or kept[-1].annotation == Unpack[Options]
            names = list(Options.__annotations__) if takes_common else list(inherited)[1:]
            own += [
                inherited[name].replace(kind=inspect.Parameter.KEYWORD_ONLY)
                for name in names
                if name not in signature.parameters
                and inherited[name].kind != inspect.Parameter.VAR_POSITIONAL
            ]
        cls.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]

    @classmethod
    def _refuse(cls, options: Collection[str]) -> None:
        """Raise TypeError for options that the constructor does not have; none is no error."""
        accepted = [name for name in list(inspect.signature(cls).parameters)[1:] if name not in options]
        checks.known_options(cls.__name__, options, accepted)

    @classmethod
    def of_model(cls, model: nn.Module, groups: list[Group], **options: Any) -> "Optimizer":
        """Build the optimizer for groups of a model's parameters; rules that need the model override this."""
        return cls(groups, **options)

    # ---- groups

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; it is checked like those given to the constructor."""
        self._plan = None
        super().add_param_group(param_group)
        try:
            with checks.in_group(self, len(self.param_groups) - 1):
                checks.check_group(self, self.param_groups[-1])
        except (ValueError, TypeError):
            self.param_groups.pop()
            raise

    @property
    def path(self) -> str:
        """The path or paths in use, e.g. "fused (CPU, AVX2)"."""
        names = {
            f"fused ({kernels(p.device.type)})" if (path := path_of(self, p, group)) == "fused" else path
            for group in self.param_groups
            for p in group["params"]
        }
        return " + ".join(sorted(names))

    @property
    def description(self) -> str:
        """What a run prints about its optimizer: the paths, and what else a rule has to say."""
        return self.path

    # ---- the step

    @_hooked
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: evaluates the model and returns the loss; called once, before anything else.

        Returns:
            The closure's result, or None.

        Raises:
            FloatingPointError: if the gradients are not finite and nonfinite="raise".
            RuntimeError: for a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    # torch.compile does not trace the step: it is one kernel already, and numbers that change from step to
    # step (the step count, a learning rate) would recompile a traced one every time.
    @_disable_dynamo
    def _update(self) -> None:
        on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        if on_cuda and torch.cuda.is_current_stream_capturing():
            checks.check_capture(self)
        self._checked = checks.check_changes(self, self._checked)
        plan = self._plan
        is_new = plan is None or not plan.holds(self)
        if plan is None or is_new:
            plan = collect(self)
            self._plan = plan if plan.is_lasting else None
        proceed, scale = gradient_scale(self, plan)
        if not proceed:
            return
        for batch in plan.batches:
            factor = -1.0 if batch.group["maximize"] else 1.0
            if batch.table is not None:
                fused.step(self, batch, factor, scale, plan.on_device)
                if is_new:
                    batch.table.bump_versions()
            else:
                unfused.step(self, batch, factor, scale)
            if batch.storage.taken:
                taken.take(batch)
        self.finish_step(plan.batches, plan.idle)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict; remainders that are DTensors are bfloat16 there, with the same bits."""
        return checkpoint.gatherable(super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict: ours, or one of the implementations that `load_foreign_state` knows.

        The groups' hyper-parameters come from the checkpoint, as in torch. Options of the whole optimizer
        (path, clipping, non-finite policy) stay as constructed. Pre-hooks and post-hooks work as in torch;
        the checks see what the pre-hooks return. Entries that other code keeps in a parameter's state are
        loaded unchanged, onto the parameter's device.

        Raises:
            ValueError: for a state of another optimizer or of a model with other shapes.
        """
        adopted: dict[str, Any] = {}

        def check(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            adopted.update(checkpoint.adopt(self, given))
            ours = {index for group in adopted["param_groups"] for index in group["params"]}
            rest = {key: value for key, value in adopted["state"].items() if key not in ours}
            return {**adopted, "state": rest}  # torch would cast states to the parameter's dtype

        def install(_: torch.optim.Optimizer) -> None:
            for saved, group in zip(adopted["param_groups"], self.param_groups, strict=True):
                for index, p in zip(saved["params"], group["params"], strict=True):
                    if state := adopted["state"].get(index):
                        self.state[p] = checkpoint.copy_state(self, p, state, group)

        # The check runs after the other pre-hooks, which may replace the state dict. The states are
        # installed before the other post-hooks run.
        hooks = (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(install, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as torch does; taken gradients cannot be set to zero."""
        if self.take_gradients and not set_to_none:
            raise ValueError("take_gradients=True: the optimizer owns the gradients; use set_to_none=True")
        super().zero_grad(set_to_none)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in OPTIMIZER_WIDE}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch adds it
        self._plan, self._checked = None, []


@torch.no_grad()
def exact_params(optimizer: Optimizer) -> dict[Tensor, Tensor]:
    """Return the exact values of the parameters, for export and evaluation, as copies.

    They include what `param_rounding` keeps apart: Kahan's compensation, or the lower half of a float32
    number. Parameters and states must be of the same step::

        exact = adan_optim.exact_params(optimizer)
        weights = {name: exact.get(x, x) for name, x in model.state_dict(keep_vars=True).items()}

    Returns:
        For each parameter a tensor of its shape in float32 (float64 for float64); of a DTensor, a DTensor.
    """
    values = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            held = {name: local(state[name]) for name in state.keys() & REST_NAMES}
            value = exact(local(p.detach()), held)
            value = value.clone() if value.dtype == p.dtype else value
            values[p] = as_part_of(p, value) if is_dtensor(p) else value
    return values


def state_bytes(optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Return the bytes that an optimizer's states occupy in this process, by the name of the state."""
    total: dict[str, int] = {}
    for state in optimizer.state.values():
        for name, x in state.items():
            if isinstance(x, Tensor):
                total[name] = total.get(name, 0) + local(x).nbytes
    return total
