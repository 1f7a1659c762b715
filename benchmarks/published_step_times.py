"""What bandwidth do the published step times imply? `python benchmarks/published_step_times.py`.

The tables of sail-sg/Adan (the rows in configs/paper/memory) say that their times are those of 200 steps. A
step that moves b bytes per parameter in t seconds needs parameters * b / t bytes per second; the code says
what b is:

    60     fused Adan: the kernel reads p, g, m, v, n, -g' and writes all but g (24 + 20), then the previous
           gradient is zeroed (4) and the gradient subtracted from it (12)
    180    Adan, foreach, 18 passes: 8+12+8+12+8+12+8+12+8+12 (clipping and the means), 8+8+8 (the
           denominator), 16+16+8 (the parameters), 4+12 (the previous gradient)

The right reading of a time implies about the same bandwidth in every row that is limited by memory, and one
that the device has.

Examples:
    python benchmarks/published_step_times.py
    python scripts/reproduce.py memory/vit_b --dry-run
"""

import statistics
from typing import Any, cast

from adan_optim.text import aligned
from repro.ledger import rows
from repro.train.cli import command_line

GRID = "memory/gpt2_grid"
BYTES = {"fused_adan_step_ms": 60, "adan_step_ms": 180}  # per parameter
STEPS = 200  # as the captions say
PEAK = 1555  # GB/s of an A100 with 40 GB, from NVIDIA's data sheet


def grid() -> list[dict[str, Any]]:
    """Return the cells of the table of GPT-2 sizes."""
    return rows.load(GRID).row.cells


def bandwidth(parameters: float, bytes_each: float, ms: float) -> float:
    """Return the GB/s of a step that takes `ms`."""
    return parameters * bytes_each / (ms * 1e-3) / 1e9


def gpt2_parameters(layers: int, width: int) -> int:
    """Return the exact count with 49,280 tokens, 2,048 positions and tied embeddings."""
    return layers * (12 * width**2 + 13 * width) + (49280 + 2048 + 2) * width


def report() -> str:
    """Return both tables and what follows from them."""
    table = [["README.md, Memory and Efficiency", "ms fused", "GB/s", "ms foreach", "GB/s"]]
    models = [rows.load(name).row for name in rows.names() if name.startswith("memory/") and name != GRID]
    for row in sorted(models, key=lambda row: row.parameters or 0):
        assert row.parameters is not None
        ms = {figure.metric: cast(float, figure.value) for figure in row.published}
        cells = [f"{row.model}, {row.parameters / 1e6:.1f} M"]
        for key, bytes_each in BYTES.items():
            cells += [f"{ms[key]}", f"{bandwidth(row.parameters, bytes_each, ms[key]):.0f}"]
        table.append(cells)
    sizes, seen = [["fused_adan/README.md, GPT-2", "ms fused", "GB/s"]], []
    for cell in grid():
        parameters, fused = gpt2_parameters(cell["layers"], cell["width"]), cell["fused_adan_step_ms"]
        seen.append(bandwidth(parameters, BYTES["fused_adan_step_ms"], fused))
        size = f"{cell['layers']} layers, width {cell['width']}, {cell['heads']} heads"
        sizes.append([f"{size}, {parameters / 1e6:.1f} M", f"{fused}", f"{seen[-1]:.0f}"])
    middle = statistics.median(seen)
    right = ["ms fused", "GB/s", "ms foreach"]
    return "\n".join(
        [
            *aligned(table, right),
            "",
            *aligned(sizes, right),
            "",
            f"as ms per step:      {min(seen):.0f} to {max(seen):.0f} GB/s over {len(seen)} rows, median "
            f"{middle:.0f}, {middle / PEAK:.0%} of the device's {PEAK}",
            f"as ms per {STEPS} steps: {STEPS * middle / 1e3:.0f} TB/s, {STEPS * middle / PEAK:.0f} times "
            "what the device has",
        ]
    )


if __name__ == "__main__":
    command_line(__doc__).parse_args()
    print(report())
