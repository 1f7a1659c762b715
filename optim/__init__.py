"""Adan and the optimizers it is compared with: reference, foreach and fused paths behind one interface."""

from .adam import Adam
from .adamw import AdamW
from .adan import Adan
from .base import Optimizer, state_bytes
from .card import Card
from .groups import layer_ids, param_groups
from .registry import CARDS, OPTIMIZERS, available, build_optimizer, path_in_use
from .sophia import Sophia, gauss_newton_bartlett, hutchinson

__all__ = [
    "CARDS",
    "OPTIMIZERS",
    "Adam",
    "AdamW",
    "Adan",
    "Card",
    "Optimizer",
    "Sophia",
    "available",
    "build_optimizer",
    "gauss_newton_bartlett",
    "hutchinson",
    "layer_ids",
    "param_groups",
    "path_in_use",
    "state_bytes",
]
