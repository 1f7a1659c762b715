"""The command line of a recipe."""

import importlib
from collections.abc import Callable
from pathlib import Path

from repro.train.cli import entry_point
from repro.train.config import TrainConfig


def command(config_name: str, schema: type[TrainConfig], module: str, doc: str | None) -> Callable[..., int]:
    """Return the command that trains the RECIPE of a module as its arguments say; see cli.entry_point.

    The module is that of the command, which stands in it above its imports. These take seconds, so the module
    is imported when the configuration has been checked: --help and mistakes are answered at once.
    """

    def main(config: TrainConfig, overrides: list[str]) -> Path:
        from repro.train.run_folder import run_name
        from repro.train.trainer import train

        recipe = importlib.import_module(module).RECIPE
        name = config.run.name or run_name(overrides)
        train(recipe(config), config, name)
        return Path(config.run.root, str(recipe.name), name)

    main.__module__ = module  # which a SLURM job imports
    return entry_point(config_name, schema, doc)(main)
