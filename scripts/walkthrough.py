"""Minimises one number with every optimizer: `python scripts/walkthrough.py`.

f(x) = x^4 + 3 x^3 + 2 from x = 3, 100 steps with lr 0.1 and the other defaults, in float64. Adam is AdamW
without weight decay. AdamW has weight decay 0.1 and, as where the example comes from, x^2 / 2 added to f.
The row of step k is after k steps. docs/monitor.md says what the numbers mean.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))  # last, so that an installed optim comes first

import optim

ROWS = (0, 1, 11, 51, 91, 100)
# title: optimizer, options, the factor of x^2 in the objective
RUNS: dict[str, tuple[str, dict[str, Any], float]] = {
    "Adam": ("adamw", dict(weight_decay=0.0), 0.0),
    "AdamW": ("adamw", dict(weight_decay=0.1), 0.5),
    "Adan": ("adan", {}, 0.0),
    "Adafactor": ("adafactor", {}, 0.0),
}


def run(name: str, options: dict[str, Any], square: float, steps: int = 100) -> list[tuple[float, float]]:
    """x and the objective there, before the first step and after each."""
    x = torch.nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    optimizer = optim.OPTIMIZERS[name]([x], lr=0.1, **options)
    seen = []
    for _ in range(steps + 1):
        loss = x**4 + 3 * x**3 + 2 + square * x**2
        seen.append((x.item(), loss.item()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return seen


def table() -> str:
    """x and the objective at some steps, one column for each optimizer that there is."""
    runs = {title: run(*how) for title, how in RUNS.items() if how[0] in optim.OPTIMIZERS}
    lines = ["| step | " + " | ".join(f"{title}: x, objective" for title in runs) + " |"]
    lines += ["|" + "---|" * (1 + len(runs))]
    for step in ROWS:
        cells = [f"{x:.4f}, {value:.4f}" for x, value in (seen[step] for seen in runs.values())]
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(table())
