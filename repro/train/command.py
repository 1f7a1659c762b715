"""The command line of a recipe."""

from collections.abc import Callable
from typing import Any

from repro.train.cli import entry_point
from repro.train.config import TrainConfig
from repro.train.run_folder import run_name
from repro.train.trainer import train


def command(recipe: type[Any]) -> Callable[..., int]:
    """Return the command that trains a Task as its arguments say; see repro.train.cli.entry_point."""

    def main(config: TrainConfig, overrides: list[str]) -> None:
        train(recipe(config), config, config.run.name or run_name(overrides))

    main.__module__ = recipe.__module__  # which a SLURM job imports
    return entry_point(recipe.name, recipe.schema)(main)
