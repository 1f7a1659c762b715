"""Compare the number of parameters of a row with those of its log and of our model."""

from typing import Any

import torch
from torch import nn

from repro.ledger import recipes
from repro.ledger.rows import Recipe
from repro.verify.checks import Check, Evidence


def parameters(evidence: Evidence, recipe: Recipe) -> Check:
    """Check that the row has as many trained parameters as its log states and our model has."""
    stated = recipe.row.parameters
    found: dict[str, int] = {}
    logged = None if evidence.log is None else _logged(evidence.log.format, evidence.log.config)
    if logged is not None:
        found["log"] = logged
    model = build(recipe)
    if model is not None:
        found["model"] = count(model)
    if not found:
        return Check(None, "not stated" if stated is None else f"{stated:,}, by the row alone")
    wrong = {source: number for source, number in found.items() if number != stated}
    notes = [f"parameters: the {source} has {number:,}, the row {stated}" for source, number in wrong.items()]
    layers = None if evidence.log is None else evidence.log.config.get("n_nonemb_param")
    if layers is not None and model is not None and (ours := count(model.get_submodule("layers"))) != layers:
        notes.append(f"parameters: the log has {layers:,} in the layers, the model {ours:,}")
    says = f"{stated:,} ({', '.join(found)})" if stated else "not stated"
    return Check(not notes, says, len(found) + (layers is not None), tuple(notes))


def count(model: nn.Module) -> int:
    """Return the number of trained parameters; shared ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def build(recipe: Recipe) -> nn.Module | None:
    """Return the model of a row on the meta device, or None if no recipe of ours builds it."""
    with torch.device("meta"):
        task = recipes.synthetic_task(recipe)
        return None if task is None else task.initial()


def _logged(format: str, config: dict[str, Any]) -> int | None:
    # fairseq's number includes a second copy of the layers, which is not trained
    key = {"mae": "parameters", "transformer_xl": "n_all_param"}.get(format)
    return None if key is None else config.get(key)
