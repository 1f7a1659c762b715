"""Causes that single steps show: their gradients, updates, moments and loss scales."""

import math
import statistics
from typing import Any

from repro.doctor.curves import blow_up
from repro.doctor.finding import Finding, setting, some, times
from repro.doctor.record import Record, Unjudged

# Rounding to nearest in bfloat16 loses a change below 2^-9 of the weight. In float32 a tensor stays as it is
# only when its relative change is below 2^-25, which no run at a useful learning rate has.
STALLED_SHARE = 0.1  # of the tensors: those of norms, with weights of 1, stall first and are a fifth or so
BF16_BYTES = 2.5  # bytes of a parameter, at most; float32 has 4


def bf16_stall(run: Record) -> Finding | None:
    """Weights in bfloat16 that are rounded to nearest, so that small updates are lost."""
    samples = _at_work(run.monitored())
    moved: dict[str, list[bool]] = {}
    for sample in samples:
        for name, one in sample.get("parameters", {}).items():
            if one.get("grad_norm") and one.get("update_ratio") is not None:
                moved.setdefault(name, []).append(one["update_ratio"] > 0)
    if not moved:
        raise Unjudged("samples of single parameters: leave per_parameter of the monitor on")
    still = [name for name, steps in moved.items() if sum(steps) < len(steps) / 2]
    size, held = run.parameters, samples[-1].get("memory", {}).get("parameters")
    if size and held and held / size > BF16_BYTES:
        return None
    if len(still) < STALLED_SHARE * len(moved):
        return None
    ratio = statistics.median(sample.get("update_ratio") or 0.0 for sample in samples)
    return Finding(
        "bf16_stall",
        f"{len(still)} of {len(moved)} parameter tensors have gradients and do not change in most samples "
        f"({', '.join(still[:2])}); the median update is {ratio:.2g} of the weights, and rounding to nearest "
        f"in bfloat16 loses less than {2**-9:.2g}",
        setting(run, "optimizer.param_rounding", "kahan")
        + ", or keep the weights in float32 (amp=bf16 does)",
    )


def dead_gradients(run: Record) -> Finding | None:
    """A part of the model without gradients: detached, unused, or with dead units."""
    samples = run.monitored()
    norms: dict[str, float] = {}
    reached: set[str] = set()  # modules whose parameters have a gradient, be it zero
    for sample in samples:
        for name, one in sample.get("parameters", {}).items():
            module = name.rpartition(".")[0] or name
            # A bias alone may have no gradient by symmetry (of keys in attention): all of a module must
            norm = one.get("grad_norm", 0.0)
            norms[module] = max(norms.get(module, 0.0), math.inf if norm is None else norm)
            reached |= {module} if "grad_norm" in one else set()
    if not norms:
        raise Unjudged("samples of single parameters: leave per_parameter of the monitor on")
    dead = [module for module, norm in norms.items() if norm == 0]
    if not dead or len(dead) == len(norms):
        return None
    return Finding(
        "dead_gradients",
        f"{len(dead)} of {len(norms)} modules have a gradient of exactly 0, or none, in all {len(samples)} "
        f"samples: {some(dead)}",
        f"look for a detach(), no_grad() or an unused output between {dead[0]} and the loss",
        likely=not reached.isdisjoint(dead),  # else they may be parts that the task does not use
    )


EPS_SHARE = 1.0  # of the root of the mean second moment: above, most denominators are eps
EPS_WORTH_A_LOOK = 0.1
OTHER_EPS = ("adafactor", "adabelief", "prodigy", "sophia", "shampoo", "lars", "lion", "muon", "sgd")


def eps_dominated(run: Record) -> Finding | None:
    """An eps above the root of the second moment, so that the optimizer is scaled gradient descent."""
    eps, name = run.number("optimizer.eps"), str(run.config.get("optimizer.name"))
    if any(name.startswith(other) for other in OTHER_EPS):
        raise Unjudged(f"an eps next to the root of a second moment, which {name} does not have")
    moments = [s["exp_avg_sq.mean"] for s in run.samples if s.get("exp_avg_sq.mean")]
    if moments:
        rms, what = math.sqrt(statistics.median(moments)), "the root of the mean second moment"
    elif run.grad_norm and run.parameters:
        norm = statistics.median(value for _, value in run.grad_norm)
        rms, what = norm / math.sqrt(run.parameters), "the root mean square of the gradient"
    else:
        raise Unjudged(f"second moments, to compare with eps={eps:g}: run again with run.monitor=50")
    if eps < EPS_WORTH_A_LOOK * rms:
        return None
    return Finding(
        "eps_dominated",
        f"eps={eps:g} is {times(eps / rms)} {what}, {rms:.2g}",
        setting(run, "optimizer.eps", f"{10 ** math.floor(math.log10(rms / 1000)):.0e}"),
        likely=eps >= EPS_SHARE * rms,
    )


LEAST_SCALE = 1.0  # below, gradients overflow in fp16 that are not scaled at all
SCALE_FALL = 2.0**10  # ten overflows in a row, or many more than the growth makes good


def loss_scale_collapse(run: Record) -> Finding | None:
    """A loss scale of fp16 that falls and falls, because gradients keep overflowing."""
    if not run.loss_scale:
        if run.config.get("amp") in ("no", "bf16"):
            return None  # there is no scale
        raise Unjudged("a log of the loss scale")
    scales = [value for _, value in run.loss_scale]
    least, last = min(scales), scales[-1]
    if least >= LEAST_SCALE and max(scales) / last < SCALE_FALL:
        return None
    return Finding(
        "loss_scale_collapse",
        f"the loss scale falls from {max(scales):g} to {least:g}, and is {last:g} at the end; below "
        f"{LEAST_SCALE:g}, gradients overflow that are not scaled at all",
        setting(run, "amp", "bf16") + ", or a lower learning rate",
    )


ALWAYS = 0.95  # of the records
FAR_ABOVE = 20.0  # median norm over threshold: noise alone, of a small batch, makes it 10


def clipping_always_on(run: Record) -> Finding | None:
    """A clipping threshold far below the norms, so that each step has the same gradient norm."""
    key = "clip_grad" if run.config.get("clip_grad") or not run.ours else "optimizer.max_grad_norm"
    if run.ours and not run.config.get(key):
        return None  # nothing is clipped
    threshold = run.number(key)
    if threshold <= 0:
        return None
    if not run.grad_norm:
        raise Unjudged(f"gradient norms, to compare with the threshold {threshold:g}")
    norms = [value for _, value in run.grad_norm]
    above = sum(norm > threshold for norm in norms) / len(norms)
    typical = statistics.median(norms)
    if above < ALWAYS or typical < FAR_ABOVE * threshold:
        return None
    return Finding(
        "clipping_always_on",
        f"{key}={threshold:g} is below {above:.0%} of {len(norms)} recorded gradient norms; their median is "
        f"{typical:.3g}, {times(typical / threshold)} the threshold",
        setting(run, key, f"{2 * typical:.1g}"),
        likely=blow_up(run) is None,  # else the norms are large for another cause
    )


def _at_work(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the samples with at least half of the highest learning rate."""
    rates = [max((g.get("lr") or 0.0 for g in s.get("groups", {}).values()), default=0.0) for s in samples]
    high = max(rates, default=0.0) / 2
    return [sample for sample, rate in zip(samples, rates, strict=True) if rate >= high]
