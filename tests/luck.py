"""Other seeds and other rounding, to find tests that pass by luck: `ADAN_TEST_LUCK=N`, N above 0.

Seeds that torch is given are shifted, and the results of matrix products change by up to four units in the
last place, about as much as with another processor's order of summation. The change is a function of the
bits, so that what is computed twice is still the same twice. Processes are changed that import this module.
"""

import os
from typing import Any

import torch
from torch import Tensor

INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def change(luck: int) -> torch.library.Library:
    """Change seeds and rounding until the library that is returned is deleted."""
    manual_seed = torch.manual_seed

    def shifted(seed: int) -> torch.Generator:
        return manual_seed(seed + 1_000_003 * luck)

    torch.manual_seed = torch.random.manual_seed = shifted  # type: ignore[assignment]
    library = torch.library.Library("aten", "IMPL")
    for name in ("mm", "addmm", "bmm", "baddbmm"):
        library.impl(name, product(name, luck), "CPU", allow_override=True)
    return library


def product(name: str, luck: int) -> Any:
    """Return torch's function of that name, with changed results."""
    compute = getattr(torch, name)

    @torch._dynamo.disable  # it would be compiled with what calls it
    def changed(*arguments: Any, **options: Any) -> Tensor:
        left, right = arguments[-2:]
        result: Tensor = right.new_empty((*left.shape[:-1], right.shape[-1]))
        compute(*arguments, **options, out=result)  # an operation of its own, so that this is no recursion
        if result.dtype not in INTEGERS:
            return result
        bits = result.view(INTEGERS[result.dtype])
        units = ((bits + 7919 * luck) * 1_103_515_245 + 12_345 * luck >> 9) % 9 - 4
        moved = (bits + units).view(result.dtype)
        return torch.where(result.isfinite() & (result.abs() > 1e-30), moved, result)

    return changed


CHANGED = change(LUCK) if (LUCK := int(os.environ.get("ADAN_TEST_LUCK", "0"))) else None
