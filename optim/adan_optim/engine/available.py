"""Whether a fused kernel can update a parameter, and why not."""

import functools

import torch
from torch import Tensor

from ..card import Card
from ..warn import SlowPathWarning, warn
from . import cuda, native
from .contract import why_not_written
from .dtensor import is_dtensor, local
from .layout import is_dense
from .storage import Storage


def why_not_fused(card: Card, p: Tensor, storage: Storage, caution: bool = False) -> str:
    """Return why no fused kernel can update a parameter of any shape, stored like this; "" if one can."""
    rules, title = card.fused_rules, card.title
    if p.device.type == "cpu" and card.cpu_rules:
        rules = card.cpu_rules
    if caution:
        rules, title = card.cautious_rules, f"{title} with caution"
    if is_dtensor(p) and (caution or not card.elementwise):
        return f"the update rule of {title} needs whole tensors, and this is a DTensor"
    if caution and (storage.taken or not rules):
        taken = " and take_gradients=True" * storage.taken
        return f"{card.title} has no fused kernel for caution=True{taken}"
    is_small = p.dtype.itemsize < 4 or storage.state in ("bfloat16", "int8")
    if is_small and not all(rule.small for rule in rules):
        return f"the fused path of {title} needs parameters and states in float32 or float64"
    if storage.state == "int8" and card.iterates:
        kept = ", ".join(card.iterates)
        return (
            f"with state_dtype='int8', {kept} stays float32, and the kernels keep all states of a rule alike"
        )
    p = local(p)
    if reason := why_not_written(p):
        return reason
    kind = p.device.type
    if kind not in card.fused_devices:
        devices = " and ".join(card.fused_devices) or "no device"
        return f"{card.title} has fused kernels for {devices}, not for {kind}"
    if reason := cuda.why_not(p.device.index) if kind == "cuda" else native.why_not(rules):
        return reason
    if not is_dense(p):
        shape = f"shape {tuple(p.shape)} and strides {p.stride()}"
        return f"a parameter of {shape} does not fill its memory; make it .contiguous()"
    return ""


def why_no_kernels(card: Card, device: torch.device) -> str:
    """Return why the kernels that a rule has for a device are missing on this machine; "" if they are not."""
    if device.type not in card.fused_devices:
        return ""
    return cuda.why_not(device.index) if device.type == "cuda" else native.why_not(card.fused_rules)


@functools.cache
def warn_of_slow_path(title: str, device: torch.device, reason: str) -> None:
    """Warn, once for each reason, that an optimizer with kernels does without them on a device."""
    warn(
        f"{title} takes the path foreach on {device.type}, which is slower than the fused one: {reason}. "
        "foreach=True takes it without this warning",
        SlowPathWarning,
    )


def kernels(device: str) -> str:
    """Return the name of a device type's kernels, e.g. "CPU, AVX2"."""
    library, _ = native.load()
    return f"CPU, {library.instruction_set}" if device == "cpu" and library else "CUDA"
