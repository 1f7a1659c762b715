"""The contract of the fast path: what a kernel may be given, on the CPU and on CUDA.

Kernels read and write plain addresses. A row of their table is a parameter, its gradient, its step count and
its states. Each of these must be

* plain: a strided tensor with memory of its own; no wrapper (FakeTensor, torchao), no lazy negation, no zero
  tensor without memory;
* of a known dtype: gradients have the parameter's, states that of their storage, step counts and scales
  float32; tensors that a step writes were not made in inference mode, where autograd does not see changes;
* of a known shape: states have the parameter's, scales one number for each block of 256 elements;
* on the parameter's device (step counts of CPU kernels are on the CPU), and dense in the parameter's memory
  order;
* disjoint: a tensor that a step writes overlaps with no other that it writes.

`check_state` checks the states on any path, `why_not_written` and `overlapping` help to choose a path, and
`check_row` makes the final check for a table. What can change unnoticed between two steps (address, dtype,
device, shape, strides, identity) is verified in every step, by `refresh` of csrc/tensors.h.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..card import Card, FusedRule
from .layout import is_dense, is_plain, same_layout
from .storage import BLOCK, REST_NAMES, Rest, StateSpec


def why_not_plain(x: Tensor) -> str:
    """Return why a kernel must not get the address of x, which may have any shape; "" if it may."""
    if not is_plain(x):
        return f"a {type(x).__name__} is not a plain tensor"
    if x.layout != torch.strided:
        return f"its layout is {x.layout}"
    if x.is_neg():
        return "it is lazily negated (see torch.Tensor.resolve_neg)"
    if x._is_zerotensor() or x.untyped_storage().nbytes() < x.storage_offset() * x.element_size() + _bytes(x):
        return "it has no memory, or not enough"
    return ""


def why_not_written(x: Tensor) -> str:
    """Return the same for a tensor of any shape that the kernel writes."""
    if x.is_inference() and not torch.is_inference_mode_enabled():
        return "it was made in inference mode and cannot be changed outside it"
    return why_not_plain(x)


def check_state(
    where: str, card: Card, spec: StateSpec, p: Tensor, state: Mapping[str, Any], hint: str = ""
) -> None:
    """Check the shapes and kinds of the states that a parameter has; others may be missing.

    Args:
        where: the parameter's name in messages.
        card: the optimizer's.
        spec: the names and shapes of the states.
        p: the parameter, of any shape; a DTensor has DTensors as states.
        state: the parameter's state dict.
        hint: added to messages about shapes.

    Raises:
        RuntimeError: for a state that is neither a strided floating-point tensor of its shape nor 8-bit
            codes of the parameter's shape with a scale for each block; for a remainder that is not int16; for
            a step count that is not one number.
    """
    small = dict(spec.small)
    for name in (*spec.full, "pre_grad", *REST_NAMES, *small):
        if name not in state or (name == "pre_grad" and not card.previous):
            continue
        x, shape = state[name], small.get(name, p.shape)
        if not isinstance(x, Tensor) or x.layout != torch.strided:
            raise RuntimeError(f"{where}: its state {name} is not a strided tensor but {_kind(x)}")
        if x.shape != torch.Size(shape):
            raise RuntimeError(
                f"{where} has shape {tuple(p.shape)}, and its state {name} has shape {tuple(x.shape)}, not "
                f"{tuple(shape)}{hint}"
            )
        scale = state.get(f"{name}_scale") if name in spec.full else None
        if name in spec.full and (scale is None) == (x.dtype == torch.uint8):
            missing = (
                "are 8-bit codes without the scales in"
                if scale is None
                else f"are {x.dtype}, with the scales of 8-bit codes in"
            )
            raise RuntimeError(f"{where}: the values of its state {name} {missing} {name}_scale")
        if name == "remainder" and x.dtype != torch.int16:
            raise RuntimeError(f"{where}: its state {name} is {x.dtype}, not torch.int16")
        if scale is None and name != "remainder" and not x.is_floating_point():
            raise RuntimeError(f"{where}: its state {name} is {x.dtype}; states are floating-point numbers")
        if scale is not None and not is_dense(x):
            raise RuntimeError(
                f"{where}: the codes of its state {name} do not fill their memory, strides {x.stride()}"
            )
        blocks = (-(-p.numel() // BLOCK),)
        if scale is not None and tuple(scale.shape) != blocks:
            raise RuntimeError(
                f"{where} has shape {tuple(p.shape)}, and {name}_scale has shape {tuple(scale.shape)}, not "
                f"{blocks} (blocks of {BLOCK}){hint}"
            )
    for name in ("step", "pre_grad_scale"):
        x = state.get(name, 0)
        if not (isinstance(x, int | float) or (isinstance(x, Tensor) and x.numel() == 1)):
            raise RuntimeError(f"{where}: its {name} must be one number, not {_kind(x)}")


def check_row(
    rule: FusedRule,
    state_dtype: torch.dtype | None,
    rest: Rest | None,
    taken: bool,
    p: Tensor,
    g: Tensor,
    state: Mapping[str, Tensor],
) -> None:
    """Check everything about a row of a table that its kernel relies on.

    Args:
        rule: the kernel's rule.
        state_dtype: the dtype of the states; None for the parameter's.
        rest: the state that holds the parameter's rest, if there is one.
        taken: whether the previous gradient is "pre_grad".
        p, g: the parameter, of any shape, and its gradient, of the same shape.
        state: the states, of the parameter's shape, their scales [blocks], and the step count, one number.

    Raises:
        RuntimeError: names the tensor and what is wrong with it.
    """
    work = torch.promote_types(p.dtype, torch.float32)
    of_states = p.dtype if state_dtype is None or p.dtype == torch.float64 else state_dtype
    own = [name for name in rule.states if not (taken and name == rule.previous)]
    like_p = {"param": (p, p.dtype), "grad": (g, p.dtype)}
    like_p |= {name: (state[name], of_states) for name in own}
    if rest is not None:
        like_p[rest.name] = (state[rest.name], rest.dtype)
    numbers = {"step": (state["step"], 1, torch.float32)}
    if taken:
        like_p["pre_grad"] = (state["pre_grad"], p.dtype)
        numbers["pre_grad_scale"] = (state["pre_grad_scale"], 1, work)
    if rule.moments:
        numbers[rule.moments] = (state[rule.moments], state[rule.moments].numel(), work)
    if of_states == torch.uint8:
        numbers |= {
            f"{name}_scale": (state[f"{name}_scale"], -(-p.numel() // BLOCK), torch.float32) for name in own
        }
    for name, (x, dtype) in like_p.items():
        read_only = name in ("grad", "pre_grad")
        wrong = (why_not_plain if read_only else why_not_written)(x) or _differs(x, dtype, p.device)
        if wrong or x.shape != p.shape or not (same_layout(x, p) and is_dense(x)):
            raise RuntimeError(
                f"{name}, {_kind(x)}, of a parameter, {_kind(p)}: {wrong or 'its memory layout differs'}"
            )
    for name, (x, count, dtype) in numbers.items():
        device = torch.device("cpu") if name == "step" and p.device.type == "cpu" else p.device
        wrong = why_not_written(x) or _differs(x, dtype, device)
        if wrong or x.numel() != count or not x.is_contiguous():
            raise RuntimeError(
                f"{name}, {_kind(x)}, of a parameter, {_kind(p)}: {wrong or f'not {count} in a row'}"
            )


def _differs(x: Tensor, dtype: torch.dtype, device: torch.device) -> str:
    if x.dtype != dtype:
        return f"it should be {dtype}"
    return f"it should be on {device}" if x.device != device else ""


def _kind(x: Any) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else repr(x)


def overlapping(rows: Sequence[Sequence[Tensor]]) -> set[int]:
    """Return the indices of the rows of plain tensors that share memory with another row or internally."""
    spans = sorted((x.data_ptr(), _bytes(x), i) for i, row in enumerate(rows) for x in row)
    found, end, last = set(), 0, -1
    for start, size, i in spans:
        if size and start and start < end:  # meta tensors are all at 0
            found |= {i, last}
        if start + size > end:
            end, last = start + size, i
    return found


def _bytes(x: Tensor) -> int:
    """The bytes from the first element of a tensor in memory to the end of the last."""
    if x.is_contiguous() or not x.numel():
        return x.nbytes
    return x.element_size() * (1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True)))
