"""Step inside the backward pass, so that the gradients never exist all at once."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .base import Optimizer


def step_in_backward(optimizer: Optimizer) -> list[RemovableHandle]:
    """Make `backward()` update each parameter as soon as its gradient is complete, and free that gradient.

    Only one parameter's gradient exists at a time. Schedulers, checkpoints and `add_param_group` keep working
    on the optimizer; its own `step()` finds no gradients and does nothing, except for parameters of groups
    that are added later.

    Every backward pass is a step, so gradients cannot be accumulated, scaled by a `GradScaler` or averaged by
    DDP. FSDP2 works.

    Args:
        optimizer: one of this package, without options that need all gradients at once.

    Returns:
        One handle per parameter; its `remove()` restores the usual step.

    Raises:
        ValueError: for Prodigy, for clipping by the global norm, for a policy for non-finite gradients, and
            for step hooks, such as those of `adan_optim.Monitor`. A hook that is registered later makes the
            backward pass raise RuntimeError.
    """
    if reason := _why_no_hooks(optimizer):
        raise ValueError(reason)
    if not optimizer.independent:
        raise ValueError(
            f"{optimizer.card.title}'s steps depend on all gradients at once, and a step in the backward "
            "pass has only one: call step() after it"
        )
    for option, off in (("max_grad_norm", 0), ("nonfinite", "propagate")):
        if (value := getattr(optimizer, option)) != off:
            raise ValueError(
                f"{option}={value!r} needs all gradients at once, and a step in the backward pass has only "
                f"one: use {option}={off!r}"
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
        "the optimizer has step hooks (adan_optim.Monitor registers some), and stepping in the backward pass "
        "has no step of all parameters to run them: remove them, and do their work after backward()"
    )


def _updater(optimizer: Optimizer, index: int, p: Tensor) -> Callable[[Tensor], None]:
    # An optimizer of this parameter alone, with the hyper-parameters and the state of the whole one. It keeps
    # its plan for the single tensor, so that a step does not go through all parameters.
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
        optimizer._opt_called = True  # type: ignore[attr-defined]  # otherwise schedulers warn that there was no step

    return update
