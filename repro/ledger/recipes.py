"""What the shared parts know of a recipe: the task `RECIPE` of the module that a row's `script` names.

The module is found by the row alone, so that nothing here names a recipe, and a new one needs no change.
"""

import importlib
from typing import cast

from repro.ledger.rows import ROOT, Recipe
from repro.train.config import typed
from repro.train.task import Task


def synthetic_task(recipe: Recipe) -> Task | None:
    """Return the task of a row without data; None where it has no configuration or the script is to come.

    It builds its model (under torch.device("meta") without memory), makes synthetic batches and has their
    loss. It reads neither data nor checkpoints: sizes that data would decide are the published ones, or those
    of the configuration (`tokenizer.vocab_size`). A recipe's other imports come with it, transformers or timm
    among them, which take seconds.
    """
    row = recipe.row
    if row.config is None or not (ROOT / row.script).exists():
        return None
    task = importlib.import_module(row.script.removesuffix(".py").replace("/", ".")).RECIPE
    return cast(Task, task(typed(recipe.config, task.schema), synthetic=True))
