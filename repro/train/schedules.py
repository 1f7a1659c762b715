"""Learning-rate schedules as pure functions of time: `t -> multiplier of the base learning rate`.

`t` counts epochs or steps from 0; `total` and `warmup` are in the same unit. `start` is the multiplier at the
beginning of the warm-up, `end` the one at the end of the decay.
"""

import math
from collections.abc import Callable, Sequence

from repro.errors import UserError
from repro.train.config import ScheduleConfig


def cosine(
    t: float, total: float, warmup: float = 0, start: float = 0.0, end: float = 0.0, join: str = "cut"
) -> float:
    """Return half a cosine from 1 to `end` after a linear warm-up, joined in one of three ways.

    cut     the cosine also starts at t = 0, so the multiplier after the warm-up is already below 1:
            timm.scheduler.CosineLRScheduler with one cycle
    shift   the cosine starts at the end of the warm-up: MAE, fairseq, Megatron
    scale   the cosine starts at t = 0, scaled to continue the last step of the warm-up: Transformer-XL, whose
            logs follow lr *= (1 + cos(pi t / T)) / (1 + cos(pi (t - 1) / T)), with `t` in steps and `end` 0
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
    """Return (1 - progress) ** power, from 1 to `end`; progress runs from the end of the warm-up to `total`.

    With `power=1` this is the linear decay of BERT and GLUE (transformers' get_linear_schedule_with_warmup).
    """
    if t < warmup:
        return start + t * (1 - start) / warmup
    if t >= total:
        return end
    return end + (1 - end) * math.pow(1 - (t - warmup) / (total - warmup), power)


def constant(t: float, warmup: float = 0, start: float = 0.0) -> float:
    """Return 1 after the warm-up."""
    return start + t * (1 - start) / warmup if t < warmup else 1.0


def multistep(
    t: float, milestones: Sequence[float], factor: float = 0.1, warmup: float = 0, start: float = 0.0
) -> float:
    """Return `factor` to the power of the milestones passed, after the warm-up: torch's MultiStepLR."""
    if t < warmup:
        return start + t * (1 - start) / warmup
    return math.pow(factor, sum(t >= milestone for milestone in milestones))


def build_schedule(
    config: ScheduleConfig, lr: float, epochs: int, steps_per_epoch: int, steps: int | None = None
) -> Callable[[int], float]:
    """Return the function `step -> multiplier` for a run.

    `lr` is the base learning rate, relative to which `warmup_lr` and `min_lr` become multipliers. The decay
    ends after `epochs`, or after `steps` if given; the cool-down follows.

    Raises:
        UserError: the warm-up is at least as long as the run, or settings exclude each other.
    """
    by_step = config.per == "step"
    if not by_step and (steps is not None or config.warmup_steps is not None):
        raise UserError("schedule.per=epoch: a run in steps, or a warm-up in steps, needs schedule.per=step")
    if config.join == "scale" and not (by_step and config.min_lr == 0):
        raise UserError("schedule.join=scale: needs schedule.per=step and schedule.min_lr=0")
    scale = steps_per_epoch if by_step else 1
    total = epochs * scale if steps is None else steps
    warmup = config.warmup_epochs * scale if config.warmup_steps is None else config.warmup_steps
    config.check_warmup(warmup, total, "steps" if by_step else "epochs")
    milestones = [milestone * (scale if steps is None else 1) for milestone in config.milestones]
    start, end = (config.warmup_lr / lr, config.min_lr / lr) if lr else (1.0, 1.0)
    curves: dict[str, Callable[[float], float]] = {
        "cosine": lambda t: cosine(t, total, warmup, start, end, config.join),
        "polynomial": lambda t: polynomial(t, total, warmup, start, end, config.power),
        "constant": lambda t: constant(t, warmup, start),
        "step": lambda t: multistep(t, milestones, config.factor, warmup, start),
    }
    curve = curves[config.name]
    return lambda step: curve(step if by_step else step // steps_per_epoch)
