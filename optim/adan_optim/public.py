"""The names of the package, each with the module that has it; see optim/adan_optim/__init__.py."""

from .adafactor import Adafactor
from .adam import Adam
from .adam_mini import AdamMini
from .adamw import AdamW
from .adan import Adan
from .ademamix import AdEMAMix
from .base import Optimizer, exact_params, state_bytes
from .card import Card
from .groups import layer_ids, param_groups
from .hidden import HiddenMatrices, hidden_matrices
from .in_backward import step_in_backward
from .interop.advice import adan_from_adamw
from .interop.convert import convert_state
from .lamb import Lamb
from .lars import Lars
from .lion import Lion
from .mars import Mars
from .monitor.monitor import Monitor
from .muon import Muon
from .nadamw import NAdamW
from .partitions import Partition, partition
from .prodigy import Prodigy, ProdigyAdan
from .registry import CARDS, OPTIMIZERS, available, build_optimizer, path_in_use
from .resize import resize_state
from .schedule_free import evaluating
from .schedule_free_adamw import ScheduleFreeAdamW
from .schedule_free_adan import ScheduleFreeAdan
from .settings import Settings
from .shampoo import Shampoo
from .soap import Soap
from .sophia import Sophia, gauss_newton_bartlett, hutchinson
from .transfer.transfer import Transfer, transfer
from .warn import SlowPathWarning

__all__ = [
    "CARDS",
    "OPTIMIZERS",
    "AdEMAMix",
    "Adafactor",
    "Adam",
    "AdamMini",
    "AdamW",
    "Adan",
    "Card",
    "HiddenMatrices",
    "Lamb",
    "Lars",
    "Lion",
    "Mars",
    "Monitor",
    "Muon",
    "NAdamW",
    "Optimizer",
    "Partition",
    "Prodigy",
    "ProdigyAdan",
    "ScheduleFreeAdamW",
    "ScheduleFreeAdan",
    "Settings",
    "Shampoo",
    "SlowPathWarning",
    "Soap",
    "Sophia",
    "Transfer",
    "adan_from_adamw",
    "available",
    "build_optimizer",
    "convert_state",
    "evaluating",
    "exact_params",
    "gauss_newton_bartlett",
    "hidden_matrices",
    "hutchinson",
    "layer_ids",
    "param_groups",
    "partition",
    "path_in_use",
    "resize_state",
    "state_bytes",
    "step_in_backward",
    "transfer",
]
