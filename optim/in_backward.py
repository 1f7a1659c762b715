"""Stepping inside the backward pass, so that gradients need not exist all at once."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .base import Optimizer


def step_in_backward(optimizer: Optimizer) -> list[RemovableHandle]:
    """Makes `backward()` update each parameter as soon as its gradient is complete, and free that gradient.

    At any time there is the gradient of one parameter, instead of those of all. The optimizer remains what
    schedulers, checkpoints and `add_param_group` work on; its own `step()` finds no gradients and does
    nothing, except for parameters of groups that are added later.

    There is one backward pass to a step, so gradients cannot be accumulated, scaled by a `GradScaler` or
    averaged by DDP. Under FSDP2 it works.

    Args:
        optimizer: any of this package, without options that need all gradients at once.

    Returns:
        Handles, one for each parameter, whose `remove()` gives the usual step back.

    Raises:
        ValueError: for clipping by the global norm, for a policy for non-finite gradients, and for hooks of
            the step, among them those of `optim.Monitor`. Those that are registered later are a
            RuntimeError of the backward pass.
    """
    if reason := _why_no_hooks(optimizer):
        raise ValueError(reason)
    for option, off in (("max_grad_norm", 0), ("nonfinite", "propagate")):
        if (value := getattr(optimizer, option)) != off:
            raise ValueError(
                f"{option}={value!r} needs all gradients at once, and stepping in the backward pass has one: "
                f"use {option}={off!r}"
            )
    return [
        p.register_post_accumulate_grad_hook(_updater(optimizer, i, p))
        for i, group in enumerate(optimizer.param_groups)
        for p in group["params"]
        if p.requires_grad
    ]


def _why_no_hooks(optimizer: Optimizer) -> str:
    if not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks):
        return ""
    return (
        "the optimizer has hooks of its step, as of optim.Monitor, and there is no step of all parameters "
        "when each is stepped in the backward pass: remove them, and do after backward() what they do"
    )


def _updater(optimizer: Optimizer, index: int, p: Tensor) -> Callable[[Tensor], None]:
    # An optimizer of this parameter alone, with the hyper-parameters and the state of the whole one. It keeps
    # what it knows of its single tensor from step to step, so that a step does not look at all parameters.
    alone = object.__new__(type(optimizer))
    own: dict[str, Any] = dict(param_groups=[{"params": [p]}], state={}, _plan=None, _checked=[])
    alone.__dict__ = {**optimizer.__dict__, **own}

    def update(_: Tensor) -> None:
        if reason := _why_no_hooks(optimizer):
            raise RuntimeError(reason)
        hyper = optimizer.param_groups[index].items()
        alone.param_groups[0].update((k, v) for k, v in hyper if k not in ("params", "param_names"))
        alone.state[p] = optimizer.state[p]
        alone._update()
        p.grad = None
        optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers warn where there was no step

    return update
