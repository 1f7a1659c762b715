"""The table of causes.

Each is a function of a Record that returns a Finding, or None if the records speak against it. It raises
Unjudged if records are missing that would tell.
"""

from collections.abc import Callable

from repro.doctor.curves import data_repeats, lr_too_high, noise_bound_batch, warmup_too_short
from repro.doctor.finding import Finding
from repro.doctor.record import Record
from repro.doctor.settings import betas_too_long, decay_on_norms, paper_betas
from repro.doctor.steps import (
    bf16_stall,
    clipping_always_on,
    dead_gradients,
    eps_dominated,
    loss_scale_collapse,
)

# In the order in which they are named: first what the settings prove, then what a record shows directly, then
# the general ones, whose symptoms all others may cause.
CAUSES: dict[str, Callable[[Record], Finding | None]] = {
    "paper_betas": paper_betas,
    "loss_scale_collapse": loss_scale_collapse,
    "bf16_stall": bf16_stall,
    "dead_gradients": dead_gradients,
    "eps_dominated": eps_dominated,
    "clipping_always_on": clipping_always_on,
    "decay_on_norms": decay_on_norms,
    "betas_too_long": betas_too_long,
    "warmup_too_short": warmup_too_short,
    "lr_too_high": lr_too_high,
    "data_repeats": data_repeats,
    "noise_bound_batch": noise_bound_batch,
}
