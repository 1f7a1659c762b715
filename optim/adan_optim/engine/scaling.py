"""The factor on all gradients, from `torch.amp.GradScaler` and clipping, and steps to skip."""

import math
from typing import Any

from torch import Tensor

from .norm import gradient_norm, over_processes
from .plan import Plan
from .rule import UpdateRule


class StepScaling:
    """The attribute `_step_supports_amp_scaling`: whether GradScaler calls the step even after an overflow.

    If so, it sets `grad_scale` and `found_inf` instead of unscaling the gradients, which saves a pass over
    them. accelerate replaces the step by a function that records the call, and takes a missing call for an
    overflow: there GradScaler must unscale and skip the step itself.

    Assigning to an optimizer's attribute overrides this.
    """

    def __get__(self, optimizer: Any, owner: type) -> bool:
        step = None if optimizer is None else vars(optimizer).get("step")
        return getattr(step, "__module__", None) != "accelerate.optimizer"


def gradient_scale(optimizer: UpdateRule, plan: Plan) -> tuple[bool, Tensor | None]:
    """Return whether to make this step, and the factor on all gradients (unscaling times clipping), if any.

    The factor is a scalar tensor. If the whole step stays on the device, the kernels handle an overflow that
    GradScaler found.

    Raises:
        FloatingPointError: if the gradients are not finite and nonfinite="raise".
    """
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is not None and not plan.on_device and found_inf.item():
        return False, None
    loss_scale = getattr(optimizer, "grad_scale", None)
    scale = None if loss_scale is None else loss_scale.double().reciprocal()
    if optimizer.max_grad_norm == 0 and optimizer.nonfinite == "propagate":
        return True, scale
    norm = gradient_norm(plan.batches) if plan.batches else None
    if optimizer.process_group is not None:
        norm = over_processes(norm, optimizer.param_groups[0]["params"][0].device, optimizer.process_group)
    if norm is None:
        return True, scale
    if optimizer.nonfinite != "propagate" and not math.isfinite(norm.item()):
        if optimizer.nonfinite == "raise":
            raise FloatingPointError(f"the norm of the gradients is {norm.item()}; nothing was changed")
        return False, None
    if optimizer.max_grad_norm > 0:
        norm = norm if scale is None else norm * scale.to(norm.device)
        clip = (optimizer.max_grad_norm / (norm + optimizer.defaults.get("eps", 0.0))).clamp(max=1)
        scale = clip if scale is None else clip * scale.to(clip.device)
    return True, scale
