"""Learning-rate schedules as pure functions of time: `t -> multiplier of the base learning rate`.

`t` counts whatever unit the caller chooses (epochs or steps) from 0; `total` and `warmup` are in the same
unit. `start` is the multiplier at t = 0 when there is a warm-up, `end` the one the decay arrives at.
"""

import math
from collections.abc import Callable, Sequence

from repro.errors import UserError
from repro.train.config import ScheduleConfig


def cosine(
    t: float, total: float, warmup: float = 0, start: float = 0.0, end: float = 0.0, join: str = "cut"
) -> float:
    """Half a cosine from 1 to `end`, after a linear warm-up that it meets in one of three ways.

    cut     the cosine's clock starts at t = 0 too, so that the multiplier just after the warm-up already lies
            on the curve, below 1: timm.scheduler.CosineLRScheduler with one cycle
    shift   the clock starts when the warm-up ends: MAE, fairseq, Megatron
    scale   the clock starts at t = 0, and the curve is scaled to go on from the last step of the warm-up:
            Transformer-XL, whose logs follow lr *= (1 + cos(pi t / T)) / (1 + cos(pi (t - 1) / T)), where `t`
            counts steps and `end` is 0
    """
    if t < warmup:
        return start + t * (1 - start) / warmup
    if t >= total:
        return end
    if join == "shift":
        t, total = t - warmup, total - warmup
    share = 0.5 * (1 + math.cos(math.pi * t / total))
    if join == "scale" and warmup > 0:
        last = warmup - 1
        return (start + last * (1 - start) / warmup) * share / (0.5 * (1 + math.cos(math.pi * last / total)))
    return end + (1 - end) * share


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


def multistep(
    t: float, milestones: Sequence[float], factor: float = 0.1, warmup: float = 0, start: float = 0.0
) -> float:
    """`factor` for each of `milestones` that t has reached, after the warm-up: torch's MultiStepLR."""
    if t < warmup:
        return start + t * (1 - start) / warmup
    return math.pow(factor, sum(t >= milestone for milestone in milestones))


def build_schedule(
    config: ScheduleConfig, lr: float, epochs: int, steps_per_epoch: int, steps: int | None = None
) -> Callable[[int], float]:
    """Return the function `step -> multiplier` for a run.

    `lr` is the base learning rate that turns `warmup_lr` and `min_lr` into multipliers. The decay ends after
    `epochs`, or after `steps` where that is given; the cool-down comes on top.

    Raises:
        UserError: a warm-up as long as the run or longer, or settings that exclude each other.
    """
    warmup_key = "warmup_epochs" if config.warmup_steps is None else "warmup_steps"
    by_step = config.per == "step"
    if not by_step and (steps is not None or config.warmup_steps is not None):
        raise UserError("schedule.per=epoch: a run in steps, or a warm-up in steps, needs schedule.per=step")
    if config.join == "scale" and not (by_step and config.min_lr == 0):
        raise UserError("schedule.join=scale: needs schedule.per=step and schedule.min_lr=0")
    scale = steps_per_epoch if by_step else 1
    total = epochs * scale if steps is None else steps
    warmup = config.warmup_epochs * scale if config.warmup_steps is None else config.warmup_steps
    if warmup > total or (warmup == total and (config.name, config.join) != ("cosine", "cut")):
        length = f"epochs={epochs}" if steps is None else f"steps={steps}"
        raise UserError(
            f"schedule.{warmup_key}={getattr(config, warmup_key):g}: must be below {length}, "
            "or nothing is left to train"
        )
    milestones = [milestone * (scale if steps is None else 1) for milestone in config.milestones]
    start, end = (config.warmup_lr / lr, config.min_lr / lr) if lr else (1.0, 1.0)

    def multiplier(step: int) -> float:
        t = step if by_step else step // steps_per_epoch
        if config.name == "cosine":
            return cosine(t, total, warmup, start, end, config.join)
        if config.name == "polynomial":
            return polynomial(t, total, warmup, start, end, config.power)
        if config.name == "step":
            return multistep(t, milestones, config.factor, warmup, start)
        return constant(t, warmup, start)

    return multiplier
