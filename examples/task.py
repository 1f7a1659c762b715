"""The task of every example: a small network in float64, trained on batches that a formula generates.

All examples make the same steps with the same optimizer, so they all end at the loss that plain.py prints.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun

_parser = argparse.ArgumentParser()
_parser.add_argument("optimizer", nargs="?", default="adan", help="a name of adan_optim.OPTIMIZERS")
_parser.add_argument("--steps", type=int, default=8)
_parser.add_argument("--max-grad-norm", type=float, default=0.0)
_parser.add_argument("--folder", default="runs/examples", help="where checkpoints go")
ARGS = _parser.parse_args()
OPTIONS = {"lr": 0.01, "weight_decay": 0.1, "max_grad_norm": ARGS.max_grad_norm}  # the optimizer's


def network() -> nn.Sequential:
    """Return a network of layers with odd sizes, one with fewer rows than processes: no two shards match."""
    torch.manual_seed(0)
    layers = nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 5), nn.GELU(), nn.Linear(5, 1)
    return nn.Sequential(*layers).double()


def batch(step: int, rank: int = RANK, world: int = WORLD) -> tuple[Tensor, Tensor]:
    """Return inputs [8 / world, 6] and targets [8 / world, 1] of a step: this process's share of the rows."""
    x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return x[rank::world], x.sin().sum(dim=1, keepdim=True)[rank::world]


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared error, a scalar, for x [rows, 6] and y [rows, 1]."""
    return (model(x) - y).square().mean()


def checkpoint(step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return Path(ARGS.folder) / Path(sys.argv[0]).stem / ARGS.optimizer / f"checkpoint-{step}"


def last_checkpoint() -> int:
    """Return the step of the last checkpoint; 0 if there is none."""
    paths = checkpoint(0).parent.glob("checkpoint-*")
    return max((int(path.name.partition("-")[2]) for path in paths), default=0)


def report(model: nn.Module) -> None:
    """Print the loss on a batch that is not trained on."""
    with torch.no_grad():
        value = loss(model, *batch(1000, rank=0, world=1)).item()
    if RANK == 0:
        print(f"{ARGS.optimizer}: loss {value:.9f}")
