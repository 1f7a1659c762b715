"""What the shared parts know of a recipe: what the module that a row's `script` names offers.

The module is found by the row alone, so that nothing here names a recipe, and a new one needs no change.
"""

import importlib
from typing import Any, Protocol, cast

from torch import nn

from repro.ledger.rows import ROOT, Row
from repro.train.task import Task


class RecipeModule(Protocol):
    """The module of a recipe.

    `config` is a composed configuration, as `Recipe.config` has it. Neither function reads data or
    checkpoints: sizes that data would decide are the published ones, or those of the configuration
    (`tokenizer.vocab_size`).
    """

    def build_model(self, config: dict[str, Any]) -> nn.Module:
        """Return the model whose parameters the row states; under torch.device("meta") without memory."""

    def synthetic_task(self, config: dict[str, Any]) -> Task:
        """Return the task without data: it builds its model, makes synthetic batches and has their loss."""


def module(row: Row) -> RecipeModule | None:
    """Return the module of a row's recipe; None where the row has no configuration or the script is to come.

    A recipe's other imports come with it, transformers or timm among them, which take seconds.
    """
    if row.config is None or not (ROOT / row.script).exists():
        return None
    return cast(RecipeModule, importlib.import_module(row.script.removesuffix(".py").replace("/", ".")))
