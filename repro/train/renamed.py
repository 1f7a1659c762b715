"""Keys of the configuration that were renamed.

The command line must use the new name, and is told so; a run folder with the old one is still read.
"""

RENAMED = {
    "accumulate": "gradient_accumulation_steps",
    "loss_scale.window": "loss_scale.growth_interval",
    "measure_batches": "eval_batches",
    "measure_epochs": "eval_epochs",
    "measure_every": "eval_every",
}
