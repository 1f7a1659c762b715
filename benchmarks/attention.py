"""Time the forms of attention in Transformer-XL.

Forward and backward pass of one layer's attention, between the projections, in float32 on the CPU and
bfloat16 on CUDA. The forms take turns, each in the memory layout that its model uses: the textbook's has time
first, as in the original code. `times as fast` is the textbook's time over a form's, the median over the
rounds with its 95 % interval; `GFLOP` counts the products; `MB` is what all operations together read and
write, counted call by call; `error` is the largest difference from the textbook in float64, of the result or
of any gradient, over the largest value there.

Examples:
    python benchmarks/attention.py --rounds 5
    python benchmarks/attention.py --device cuda --out attention
"""

import argparse

from benchmarks.common import parser


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    found = parser(__doc__, device=True)
    found.add_argument("--rounds", type=int, default=40)
    found.add_argument("--streams", type=int, help="factor on the batch; default: 1, with CUDA 15")
    return found.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import check, interleave, machine, made
from benchmarks.training import ratio, shown
from nlp.transformer_xl.attention import FORMS
from repro.results import page, publish, table
from repro.train.cli import exit_status

# streams, tokens, tokens with memory, heads, head size
SHAPES = {
    "wikitext103, training": (4, 150, 300, 10, 41),
    "wikitext103, memory of 640": (4, 128, 768, 10, 41),
    "small": (16, 64, 128, 4, 32),
}
STREAMS = {"cpu": 1, "cuda": 15}  # factors on those of SHAPES: 60 on a GPU, as in the published runs
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}


class Traffic(TorchDispatchMode):
    """Add up the bytes of all tensors that operations read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in str(func):
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return out


def case(form: str, shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
    """Return a step, forward and backward of a form, which returns the result and the gradients.

    Args:
        shape: batch B, queries T, keys K, heads H, head size D; see nlp.transformer_xl.attention. The result
            is [B, T, H, D]; the gradients are those of q, k, v, r and the two biases.
    """
    batch, queries, keys, heads, size = shape
    generator = torch.Generator().manual_seed(0)
    sizes = [(batch, queries), (batch, keys), (batch, keys), (keys,), (), ()]
    tensors = [torch.randn(*x, heads, size, generator=generator, dtype=torch.float64) for x in sizes]
    grad = torch.randn(batch, queries, heads, size, generator=generator, dtype=torch.float64)
    if form == "textbook":
        tensors[:3] = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in tensors[:3]]
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    mask = torch.zeros(queries, keys).masked_fill(distance < 0, -torch.inf).to(device, dtype)
    leaves = [x.to(device, dtype).requires_grad_() for x in tensors]
    compute: Callable[..., Tensor] = FORMS[form]
    grad = grad.to(device, dtype)

    def step() -> list[Tensor]:
        out = compute(*leaves, mask, 0.0)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    return step


def measure(
    shape: tuple[int, ...], device: str, dtype: torch.dtype, rounds: int, name: str
) -> list[dict[str, Any]]:
    """Return the numbers of each form; `shape` is that of `case`."""
    steps = {form: case(form, shape, device, dtype) for form in FORMS}
    exact = case("textbook", shape, device, torch.float64)()
    times = interleave(steps, rounds, name, device)
    rows = []
    for form, step in steps.items():
        with FlopCounterMode(display=False) as flops:
            step()
        with Traffic() as traffic:
            found = step()
        errors = [float((x - y).abs().max() / y.abs().max()) for x, y in zip(found, exact, strict=True)]
        rows.append(
            {
                "form": form,
                "ms": statistics.median(times[form]) * 1e3,
                "ratio": ratio(times["textbook"], times[form]),
                "gflop": flops.get_total_flops() / 1e9,
                "mb": traffic.bytes / 1e6,
                "error": max(errors),
            }
        )
    return rows


def markdown(result: dict[str, Any]) -> str:
    """Return the page of a result."""
    header = ["form", "ms", "times as fast (95%)", "GFLOP", "GFLOP/s", "MB", "error"]
    parts = []
    for name, run in result["shapes"].items():
        batch, queries, keys, heads, size = run["shape"]
        cells = (
            [
                row["form"],
                f"{row['ms']:.2f}",
                shown(row["ratio"]),
                f"{row['gflop']:.3g}",
                f"{row['gflop'] / row['ms'] * 1e3:.3g}",
                f"{row['mb']:.0f}",
                f"{row['error']:.1e}",
            ]
            for row in run["rows"]
        )
        title = f"## {name}: {batch} streams, {queries} tokens that see {keys}, {heads} heads of {size}"
        parts += [title, table(header, cells)]
    return page(
        "Attention with relative positions, forward and backward",
        f"{made(result['machine'], result['dtype'])} Medians of {result['rounds']} interleaved rounds. "
        "`--help` explains the columns.",
        *parts,
    )


@exit_status
def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write, and return the exit status."""
    options = read_options(arguments)
    check(options, "rounds", "streams")
    device, dtype = options.device, DTYPES[options.device]
    factor = options.streams or STREAMS[device]
    shapes = {name: (batch * factor, *rest) for name, (batch, *rest) in SHAPES.items()}
    result = {
        "machine": machine(device, arguments),
        "dtype": str(dtype).removeprefix("torch."),
        "rounds": options.rounds,
        "shapes": {
            name: {"shape": shape, "rows": measure(shape, device, dtype, options.rounds, name)}
            for name, shape in shapes.items()
        },
    }
    publish(result, markdown(result), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
