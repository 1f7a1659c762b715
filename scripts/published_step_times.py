"""What memory bandwidth the published times of a step imply: `python scripts/published_step_times.py`.

The tables of sail-sg/Adan (results/published/fused_adan.yaml) call their times those of 200 steps. A step
that moves b bytes a parameter in t seconds needs parameters * b / t bytes a second; b is known from the code:

    60     fused Adan: the kernel reads p, g, m, v, n, -g' and writes all but the last (24 + 20), then the
           previous gradient is zeroed (4) and the gradient subtracted from it (12)
    180    Adan, foreach: 18 passes, one by one 8+12+8+12+8+12+8+12+8+12 (clipping and the means),
           8+8+8 (the denominator), 16+16+8 (the parameters), 4+12 (the previous gradient)

A right reading of the time gives about the same bandwidth in every row that is limited by memory, and one
that the device has.
"""

import statistics
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

DATA = Path(__file__).resolve().parents[1] / "results" / "published" / "fused_adan.yaml"
BYTES = {"fused_adan_ms": 60, "adan_ms": 180}  # a parameter
STEPS = 200  # as the captions say


def bandwidth(parameters: float, bytes_each: float, ms: float) -> float:
    """GB/s of one step that takes `ms`."""
    return parameters * bytes_each / (ms * 1e-3) / 1e9


def gpt2_parameters(layers: int, width: int) -> int:
    """Exact count with 49,280 tokens, 2,048 positions and tied embeddings."""
    return layers * (12 * width**2 + 13 * width) + (49280 + 2048 + 2) * width


def report(data: dict[str, Any]) -> str:
    """Both tables and what follows from them."""
    lines = ["README.md, Memory and Efficiency            ms fused    GB/s   ms foreach    GB/s"]
    for row in data["memory_and_efficiency"]:
        fused, foreach = (bandwidth(row["parameters_m"] * 1e6, BYTES[key], row[key]) for key in BYTES)
        lines.append(
            f"{row['model']:<42}{row['fused_adan_ms']:>10}{fused:>8.0f}{row['adan_ms']:>13}{foreach:>8.0f}"
        )
    lines += ["", "fused_adan/README.md, GPT-2                 ms fused    GB/s"]
    seen = []
    for row in data["gpt2_grid"]:
        parameters = gpt2_parameters(row["layers"], row["width"])
        seen.append(bandwidth(parameters, BYTES["fused_adan_ms"], row["fused_adan_ms"]))
        name = f"{row['layers']} layers, width {row['width']}, {row['heads']} heads, {parameters / 1e6:.1f} M"
        lines.append(f"{name:<42}{row['fused_adan_ms']:>10}{seen[-1]:>8.0f}")
    middle, peak = statistics.median(seen), data["peak_bandwidth_gb_per_s"]
    lines += [
        "",
        f"as ms per step:      {min(seen):.0f} to {max(seen):.0f} GB/s over {len(seen)} rows, median "
        f"{middle:.0f}, {middle / peak:.0%} of the device's {peak}",
        f"as ms per {STEPS} steps: {STEPS * middle / 1e3:.0f} TB/s, {STEPS * middle / peak:.0f} times what "
        "the device has",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(OmegaConf.to_container(OmegaConf.load(DATA))))  # type: ignore[arg-type]
