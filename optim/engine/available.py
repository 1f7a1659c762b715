"""Whether a fused kernel can update a parameter, and why not."""

from torch import Tensor

from ..card import Card
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


def kernels(device: str) -> str:
    """Return the name of a device type's kernels, e.g. "CPU, AVX2"."""
    library, _ = native.load()
    return f"CPU, {library.instruction_set}" if device == "cpu" and library else "CUDA"
