"""Times the forms of attention in Transformer-XL: `python benchmarks/attention.py [--device cuda]`.

Forward and backward pass of one layer's attention, between the projections, float32 on the CPU and bfloat16
on CUDA. The forms take turns, each in the layout that its model would hand it: the textbook's has time first,
as the original code. `times as fast` is the textbook's time over a form's, median over the rounds with its
95 % interval; `GFLOP` are those of the products; `MB` is what all operations together read and write, counted
call by call; `error` is the largest difference to the textbook in float64, of the result and of any gradient,
over the largest value there.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).resolve().parent.parent))  # last, so that an installed optim comes first

from benchmarks.common import interleave, machine, publish, table
from benchmarks.training import ratio
from benchmarks.training_page import shown
from nlp.transformer_xl.attention import FORMS, textbook
from repro.errors import UserError
from repro.train.cli import exit_status

# streams, tokens, tokens with memory, heads, size of a head
SHAPES = {
    "wikitext103, training": (4, 150, 300, 10, 41),
    "wikitext103, memory of 640": (4, 128, 768, 10, 41),
    "small": (16, 64, 128, 4, 32),
}
STREAMS = {"cpu": 1, "cuda": 15}  # times those of SHAPES: 60 on a GPU, as in the published runs
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}


class Traffic(TorchDispatchMode):
    """Adds up the bytes of all tensors that operations read and write; views move nothing."""

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
    """Return a step: forward and backward of a form, giving the result and the gradients."""
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
    grad = grad.to(device, dtype)

    def step() -> list[Tensor]:
        out = FORMS[form](*leaves, mask, 0.0)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    return step


def measure(
    shape: tuple[int, ...], device: str, dtype: torch.dtype, rounds: int, name: str
) -> list[dict[str, Any]]:
    """Return the numbers of each form."""
    steps = {form: case(form, shape, device, dtype) for form in FORMS}
    exact = case(textbook.__name__, shape, device, torch.float64)()
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
    """The result as a page."""
    about = result["machine"]
    where = f"{about['gpu']}, host {about['cpu']}" if about["device"] == "cuda" else about["cpu"]
    lines = [
        "# Attention with relative positions, forward and backward",
        "",
        f"`{about['command']}` at commit {about['commit']}: {where}, {about['threads']} threads, "
        f"torch {about['torch']}, Python {about['python']}, {result['dtype']}. "
        f"Medians of {result['rounds']} interleaved rounds. `--help` explains the columns.",
    ]
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
        header = ["form", "ms", "times as fast (95%)", "GFLOP", "GFLOP/s", "MB", "error"]
        title = f"## {name}: {batch} streams, {queries} tokens that see {keys}, {heads} heads of {size}"
        lines += ["", title, *table(header, cells)]
    return "\n".join(lines) + "\n"


@exit_status
def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write, and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--streams", type=int, help="times those of the shapes; default: 1, with CUDA 15")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    options = parser.parse_args(words)
    device = options.device
    factor = STREAMS[device] if options.streams is None else options.streams
    for key, value in (("rounds", options.rounds), ("streams", factor)):
        if value < 1:
            raise UserError(f"--{key} {value}: must be at least 1")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA GPU here; leave it out to measure on the CPU")
    dtype = DTYPES[device]
    result = {
        "machine": machine(device, [sys.argv[0], *words]),
        "dtype": str(dtype).removeprefix("torch."),
        "rounds": options.rounds,
        "shapes": {},
    }
    for name, (batch, *rest) in SHAPES.items():
        shape = (batch * factor, *rest)
        result["shapes"][name] = {"shape": shape, "rows": measure(shape, device, dtype, options.rounds, name)}
    publish(result, markdown(result), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
