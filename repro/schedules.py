"""Learning-rate schedules as pure functions of time: `t -> multiplier of the base learning rate`.

`t` counts whatever unit the caller chooses (epochs or steps) from 0; `total` and `warmup` are in the same
unit. `start` is the multiplier at t = 0 when there is a warm-up, `end` the one the decay arrives at.
"""

import math
from collections.abc import Callable

from repro.config import ScheduleConfig
from repro.errors import UserError


def cosine(t: float, total: float, warmup: float = 0, start: float = 0.0, end: float = 0.0) -> float:
    """Half a cosine from 1 to `end`; the same numbers as timm.scheduler.CosineLRScheduler with one cycle.

    As in timm, the warm-up is not prefixed: the cosine's clock starts at t = 0 too, so that the multiplier
    just after the warm-up already lies on the curve, below 1.
    """
    if t < warmup:
        return start + t * (1 - start) / warmup
    if t >= total:
        return end
    return end + 0.5 * (1 - end) * (1 + math.cos(math.pi * t / total))


def polynomial(
    t: float, total: float, warmup: float = 0, start: float = 0.0, end: float = 0.0, power: float = 1.0
) -> float:
    """(1 - progress) ** power from 1 to `end`, where progress runs from the end of the warm-up to `total`.

    With `power=1` this is the linear decay of BERT and GLUE (transformers' get_linear_schedule_with_warmup).
    """
    if t < warmup:
        return start + t * (1 - start) / warmup
    if t >= total:
        return end
    return end + (1 - end) * math.pow(1 - (t - warmup) / (total - warmup), power)


def constant(t: float, warmup: float = 0, start: float = 0.0) -> float:
    """1 after the warm-up."""
    return start + t * (1 - start) / warmup if t < warmup else 1.0


def build_schedule(
    config: ScheduleConfig, lr: float, epochs: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """Return the function `step -> multiplier` for a run.

    `lr` is the base learning rate that turns `warmup_lr` and `min_lr` into multipliers. The decay ends after
    `epochs`; the cool-down comes on top.

    Raises:
        UserError: a warm-up as long as the run or longer.
    """
    if config.warmup_epochs > epochs or (config.name == "polynomial" and config.warmup_epochs == epochs):
        raise UserError(
            f"schedule.warmup_epochs={config.warmup_epochs:g}: must be below epochs={epochs}, "
            "or nothing is left to train"
        )
    scale = 1 if config.per == "epoch" else steps_per_epoch
    total, warmup = epochs * scale, config.warmup_epochs * scale
    start, end = (config.warmup_lr / lr, config.min_lr / lr) if lr else (1.0, 1.0)

    def multiplier(step: int) -> float:
        t = step // steps_per_epoch if config.per == "epoch" else step
        if config.name == "cosine":
            return cosine(t, total, warmup, start, end)
        if config.name == "polynomial":
            return polynomial(t, total, warmup, start, end, config.power)
        return constant(t, warmup, start)

    return multiplier
