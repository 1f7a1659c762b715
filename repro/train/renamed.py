"""Renamed keys of the configuration.

The command line refuses the old names; run folders with them can still be read.
"""

RENAMED = {
    "accumulate": "gradient_accumulation_steps",
    "loss_scale.window": "loss_scale.growth_interval",
    "measure_batches": "eval_batches",
    "measure_epochs": "eval_epochs",
    "measure_every": "eval_every",
}
