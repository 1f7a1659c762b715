"""What memory bandwidth the published times of a step imply: `python benchmarks/published_step_times.py`.

The tables of sail-sg/Adan (the ledger's rows in configs/paper/memory) call their times those of 200 steps. A
step that moves b bytes a parameter in t seconds needs parameters * b / t bytes a second; b is known from the
code:

    60     fused Adan: the kernel reads p, g, m, v, n, -g' and writes all but the last (24 + 20), then the
           previous gradient is zeroed (4) and the gradient subtracted from it (12)
    180    Adan, foreach: 18 passes, one by one 8+12+8+12+8+12+8+12+8+12 (clipping and the means),
           8+8+8 (the denominator), 16+16+8 (the parameters), 4+12 (the previous gradient)

A right reading of the time gives about the same bandwidth in every row that is limited by memory, and one
that the device has.
"""

import itertools
import statistics
import sys
from typing import Any, cast

from optim.text import aligned
from repro.ledger import rows
from repro.train.cli import exit_status

GRID = "memory/gpt2_grid"
BYTES = {"fused_adan_step_ms": 60, "adan_step_ms": 180}  # a parameter
STEPS = 200  # as the captions say
PEAK = 1555  # GB/s of an A100 with 40 GB, NVIDIA's data sheet


def models() -> list[rows.Row]:
    """The rows of one model each, smallest first."""
    names = [name for name in rows.names() if name.startswith("memory/") and name != GRID]
    return sorted((rows.load(name).row for name in names), key=lambda row: row.parameters or 0)


def grid() -> list[dict[str, Any]]:
    """The cells of the table of GPT-2's sizes."""
    return rows.load(GRID).row.cells


def bandwidth(parameters: float, bytes_each: float, ms: float) -> float:
    """GB/s of one step that takes `ms`."""
    return parameters * bytes_each / (ms * 1e-3) / 1e9


def gpt2_parameters(layers: int, width: int) -> int:
    """Exact count with 49,280 tokens, 2,048 positions and tied embeddings."""
    return layers * (12 * width**2 + 13 * width) + (49280 + 2048 + 2) * width


def report() -> str:
    """Both tables and what follows from them."""
    right = ["ms fused", "GB/s", "ms foreach"]
    table = [["README.md, Memory and Efficiency", "ms fused", "GB/s", "ms foreach", "GB/s"]]
    for row in models():
        assert row.parameters is not None
        ms = {figure.metric: cast(float, figure.value) for figure in row.published}
        speeds = ([f"{ms[key]}", f"{bandwidth(row.parameters, BYTES[key], ms[key]):.0f}"] for key in BYTES)
        table.append([f"{row.model}, {row.parameters / 1e6:.1f} M", *itertools.chain(*speeds)])
    sizes, seen = [["fused_adan/README.md, GPT-2", "ms fused", "GB/s"]], []
    for cell in grid():
        parameters, ms = gpt2_parameters(cell["layers"], cell["width"]), cell["fused_adan_step_ms"]
        seen.append(bandwidth(parameters, BYTES["fused_adan_step_ms"], ms))
        size = f"{cell['layers']} layers, width {cell['width']}, {cell['heads']} heads"
        sizes.append([f"{size}, {parameters / 1e6:.1f} M", f"{ms}", f"{seen[-1]:.0f}"])
    lines = [*aligned(table, right), "", *aligned(sizes, right)]
    middle = statistics.median(seen)
    lines += [
        "",
        f"as ms per step:      {min(seen):.0f} to {max(seen):.0f} GB/s over {len(seen)} rows, median "
        f"{middle:.0f}, {middle / PEAK:.0%} of the device's {PEAK}",
        f"as ms per {STEPS} steps: {STEPS * middle / 1e3:.0f} TB/s, {STEPS * middle / PEAK:.0f} times what "
        "the device has",
    ]
    return "\n".join(lines)


@exit_status
def main() -> int:
    """Print the report and return the exit status."""
    print(report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
