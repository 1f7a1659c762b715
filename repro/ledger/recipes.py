"""Find the task of a row: `RECIPE` in the module of its `script`.

Nothing here names a recipe, so a new one needs no change.
"""

import importlib
from typing import cast

from repro.ledger.rows import ROOT, Recipe
from repro.train.config import typed
from repro.train.task import Task


def synthetic_task(recipe: Recipe) -> Task | None:
    """Return the task of a row without data, or None if the row has no configuration or no script yet.

    The task can build its model (without memory under torch.device("meta")), make synthetic batches and
    compute their loss. It reads neither data nor checkpoints: sizes that depend on data are the published
    ones, or those in the configuration (`tokenizer.vocab_size`). Importing a recipe takes seconds.
    """
    row = recipe.row
    if row.config is None or not (ROOT / row.script).exists():
        return None
    task = importlib.import_module(row.script.removesuffix(".py").replace("/", ".")).RECIPE
    return cast(Task, task(typed(recipe.config, task.schema), synthetic=True))
