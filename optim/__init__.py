"""Adan and the optimizers it is compared with: reference, foreach and fused paths behind one interface."""

from .adamw import AdamW
from .adan import Adan
from .base import Optimizer, state_bytes
from .card import Card
from .groups import layer_ids, param_groups
from .in_backward import step_in_backward
from .registry import CARDS, OPTIMIZERS, available, build_optimizer, path_in_use

__all__ = [
    "CARDS",
    "OPTIMIZERS",
    "AdamW",
    "Adan",
    "Card",
    "Optimizer",
    "available",
    "build_optimizer",
    "layer_ids",
    "param_groups",
    "path_in_use",
    "state_bytes",
    "step_in_backward",
]
