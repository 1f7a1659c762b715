"""What a `torch.amp.GradScaler` may leave to an optimizer's step."""

from typing import Any


class StepScaling:
    """The attribute `_step_supports_amp_scaling`: whether GradScaler calls the step even after an overflow.

    It then sets `grad_scale` and `found_inf` instead of unscaling the gradients, and saves a pass over them.
    accelerate replaces the step by a function that notes that it was called, and takes an overflow for a call
    that did not come: there GradScaler has to unscale and to leave the step out itself.

    Assigning to the attribute of an optimizer goes before this.
    """

    def __get__(self, optimizer: Any, owner: type) -> bool:
        step = None if optimizer is None else vars(optimizer).get("step")
        return getattr(step, "__module__", None) != "accelerate.optimizer"
