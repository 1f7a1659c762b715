"""Causes that the curves of the losses show."""

import itertools
import math
import statistics

from repro.doctor.finding import Finding, setting
from repro.doctor.record import Record, Unjudged

EARLY = 0.15  # share of the run in which a warm-up matters
LARGE_UPDATE = 0.1  # of the weights in one step; those of healthy runs stay below 0.05
SHORT_WARMUP = 0.02  # share of the run: recipes here and published ones have 5 % to 40 %
RISE = 1.1  # loss over the first one: above, training has undone what initialisation gave
ABOVE_NOISE = 7.0  # standard deviations of a record's noise by which it must rise, too


def warmup_too_short(run: Record) -> Finding | None:
    """A full learning rate at the first steps, when moments and weights are not ready for it."""
    warmup, steps = run.warmup, run.steps
    if warmup is None or not steps:
        raise Unjudged("a log that states the warm-up and the steps")
    if warmup >= SHORT_WARMUP * steps:
        return None
    blow = blow_up(run)
    early = [s.get("update_ratio") or 0.0 for s in run.samples if s["step"] <= max(EARLY * steps, 5)]
    large = max(early, default=0.0)
    if large < LARGE_UPDATE and (blow is None or blow[0] > EARLY * steps):
        return None
    shown = []
    if large >= LARGE_UPDATE:
        shown.append(f"an early step changes the weights by {large:.0%}")
    if blow is not None and blow[0] <= EARLY * steps:
        shown.append(blow[1])
    return Finding(
        "warmup_too_short",
        f"the warm-up has {warmup:,.0f} of {steps:,.0f} steps: {' and '.join(shown)}",
        ("schedule.warmup_epochs=0 " if run.ours else "")
        + setting(run, "schedule.warmup_steps", f"{max(1, round(0.1 * steps))}"),
    )


def lr_too_high(run: Record) -> Finding | None:
    """A learning rate at which the loss rises or the weights are replaced rather than changed."""
    blow = blow_up(run)
    samples = run.samples
    large = sorted((s.get("update_ratio") or 0.0 for s in samples), reverse=True)
    top = large[len(large) // 20] if large else 0.0  # not a single outlier
    if blow is None and top < LARGE_UPDATE:
        return None
    lr = run.peak_lr
    shown = [blow[1]] if blow else []
    if top >= LARGE_UPDATE:
        shown.append(f"steps change the weights by {top:.0%}, where a few per cent are usual")
    cure = setting(run, "optimizer.lr", f"{lr / 10:.2g}") if lr else "a tenth of the learning rate"
    at = f"lr={lr:g}: " if lr else ""
    return Finding("lr_too_high", at + " and ".join(shown), cure)


PASSES = 3.0  # over the data: before, nothing repeats often enough to be learned by heart
MANY_PASSES = 10.0  # fine-tuning makes fewer, and its validation loss may rise all the same
OVERFIT_RISE = 0.1  # of the validation loss above its minimum, at the end
GAP = 1.3  # validation loss over training loss at the end


def data_repeats(run: Record) -> Finding | None:
    """Few data, seen again and again: training falls, validation rises."""
    if len(run.valid) < 3 or not run.loss:
        raise Unjudged("a validation loss at three points or more")
    if run.epochs is not None and run.epochs < PASSES:
        return None
    best_at, best = min(run.valid, key=lambda point: point[1])
    last, train = run.valid[-1][1], run.loss[-1][1]
    at_best = min(run.loss, key=lambda point: abs(point[0] - best_at))[1]
    if best <= 0 or last < (1 + OVERFIT_RISE) * best or train >= at_best:
        return None
    passes = f" after {run.epochs:.3g} passes over the data" if run.epochs else ""
    return Finding(
        "data_repeats",
        f"the validation loss has risen by {last / best - 1:.0%} since {run.position} {best_at:g} while the "
        f"training loss fell from {at_best:.3g} to {train:.3g}{passes}",
        f"more data or augmentation, or stop at {run.position} {best_at:g}",
        likely=last > GAP * train and (run.epochs or 0) >= MANY_PASSES,
    )


PARTS = 20  # of the run, whose mean losses are compared
NOISY_PART = 0.02  # noise of the mean loss of a part, over the loss
SIGNAL = 5.0  # descent of the whole run over the noise of a part: healthy runs have 5.7 and more


def noise_bound_batch(run: Record) -> Finding | None:
    """A batch so small that the noise of its loss exceeds what the run learns."""
    if len(run.loss) < PARTS:
        raise Unjudged(f"the training loss at {PARTS} points or more")
    parts = _parts([value for _, value in run.loss])
    noise = _noise(parts)
    descent = statistics.fmean(parts[:2]) - statistics.fmean(parts[-4:])
    level = statistics.median(parts)
    if level <= 0 or noise < NOISY_PART * level or descent > SIGNAL * noise:
        return None
    batch = run.config.get("batch_size")
    return Finding(
        "noise_bound_batch",
        f"the training loss falls by {descent:.2g} in the run, and scatters by {noise:.2g} between its "
        f"{PARTS} parts" + (f", at batch_size={batch}" if batch else ""),
        setting(run, "batch_size", f"{16 * batch}") if isinstance(batch, int) else "a larger batch",
    )


def blow_up(run: Record) -> tuple[float, str] | None:
    """Return the step at which the loss blew up and a clause that says so, or None."""
    if run.diverged is not None:
        return run.diverged, f"the loss is not finite at {run.position} {run.diverged:g}"
    first = run.loss[0][1]
    at, most = max(run.loss, key=lambda point: point[1])
    if first > 0 and most > RISE * first and most > first + ABOVE_NOISE * _noise([x for _, x in run.loss]):
        return at, f"the loss rises from {first:.3g} to {most:.3g} at {run.position} {at:g}"
    return None


def _noise(values: list[float]) -> float:
    """Return the standard deviation of the noise on a curve; trends cancel, and outliers do not count."""
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return 1.4826 * statistics.median(bends) / math.sqrt(6) if bends else 0.0


def _parts(values: list[float]) -> list[float]:
    """Return the means of PARTS parts of equal length, of at least as many values."""
    edges = [round(i * len(values) / PARTS) for i in range(PARTS + 1)]
    return [statistics.fmean(values[a:b]) for a, b in itertools.pairwise(edges)]
