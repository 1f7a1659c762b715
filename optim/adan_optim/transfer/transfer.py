"""Settings for one optimizer from those of another, predicted from the noise of the gradient."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.checks import known_options, number, one_of, whole_number
from ..groups import param_groups
from ..registry import OPTIMIZERS, build_optimizer, find
from ..settings import Settings
from ..text import aligned
from .lengths import FILTERS, squared_length
from .noise import Noise, by_group, measure, together

MEMORIES = 20  # of its longest average that a run should last; in shorter runs all memories shrink alike
SHRINK = 5  # the most by which they do
WARMUPS = 2  # memories of the average of squares that a linear warm-up should last (arXiv 1910.04209)
SHARE = 0.1  # of the run that a warm-up may take


@dataclass(frozen=True)
class Transfer:
    """What `transfer` found; `print(found)` shows settings, reasons and noise.

    Attributes:
        settings: of the optimizer to move to.
        factor: its learning rate over the other's.
        noise: of each parameter's gradient, by name.
        groups: the factors of the groups of `param_groups` alone, each with its noise.
    """

    settings: Settings
    factor: float
    noise: dict[str, Noise]
    groups: dict[str, tuple[float, Noise]]

    def __str__(self) -> str:
        rows = [("parameters", "number", "signal-to-noise", "factor on lr")]
        found = {"all": (self.factor, together(self.noise.values())), **self.groups}
        for label, (factor, noise) in found.items():
            rows.append((label, f"{noise.parameters:,}", f"{noise.ratio:.3g}", f"{factor:.2f}"))
        return "\n".join([str(self.settings), "", *aligned(rows)])


def transfer(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    like: str | Mapping[str, Any] = "adamw",
    to: str | Mapping[str, Any] = "adan",
    *,
    steps: int | None = None,
    warmup: int = 0,
    pilot: int = 200,
    samples: int = 32,
    micro_batches: int = 1,
    clip_grad: float | None = None,
) -> Transfer:
    """Return settings with which `to` takes steps as long as those of `like`, which was tuned.

    First `pilot` steps of training with `like` bring the model where the noise is that of training: at random
    weights the gradient is nearly the same in all batches. Then the signal-to-noise ratio of each parameter's
    gradient is measured (`noise.measure`), and the closed form of `lengths` gives the factor on the learning
    rate. The weights and buffers of the model are then those from before.

    Args:
        model: may be sharded, or in DistributedDataParallel; then all processes call this.
        batches: micro-batches of the training data, at least micro_batches x pilot + samples.
        loss: the mean loss of the model on a micro-batch, a scalar.
        like: "adamw", "nadamw", "adan" or "lion", or a mapping with such a "name" and the options that were
            tuned.
        to: one of the same names, or a mapping with such a "name", and "betas" that are to stay.
        steps: of the run to come, for betas and warm-up; None leaves the default betas.
        warmup: of `like`, in steps.
        pilot: steps, with a linear warm-up; 0 if the model is trained already.
        samples: number of gradients that are measured; 20 to 50 suffice.
        micro_batches: of one step, whose gradients are averaged.
        clip_grad: the global norm to which the pilot's gradients are clipped.

    Raises:
        ValueError, TypeError: for an unknown optimizer or option, an invalid number, too few batches, or a
            loss that is not finite.

    Example:
        >>> found = adan_optim.transfer(model, loader, loss, {"name": "adamw", "lr": 1e-3}, steps=50_000)
        >>> optimizer = build_optimizer(model, found.settings.name, **found.settings.options)
    """
    source, target = _complete("like", like), _complete("to", to)
    number("warmup", warmup)
    whole_number("pilot", pilot, 0)
    whole_number("samples", samples, 2)
    whole_number("micro_batches", micro_batches)
    if steps is not None:
        whole_number("steps", steps)
    betas, why_betas = target["betas"], "as given"
    if isinstance(to, str) or "betas" not in to:
        betas, why_betas = _betas(target["name"], betas, steps)
    target["betas"] = betas = tuple(betas)
    stream = iter(batches)
    before = {name: x.detach().clone() for name, x in model.state_dict().items()}
    try:
        _train(model, stream, loss, source, pilot, micro_batches, clip_grad)
        noise = measure(model, stream, loss, samples, micro_batches)
    finally:
        model.load_state_dict(before)

    factor = _factor(source, target, noise)
    labels = _labels(model)
    groups = {
        label: (_factor(source, target, {n: noise[n] for n in labels[label] if n in noise}), found)
        for label, found in by_group(noise, labels).items()
    }
    lr = float(f"{source['lr'] * factor:.3g}")
    decay, why_decay = _decay(source, target["name"], lr)
    warm, why_warmup = _warmup(betas, steps, warmup)
    reasons = {
        "lr": f"{factor:.2f} x that of {source['name']}, {source['lr']:g}: steps are as long at a "
        f"signal-to-noise ratio of {together(noise.values()).ratio:.2g} ({samples} gradients, step {pilot})",
        "betas": why_betas,
        "weight_decay": why_decay,
        "warmup": why_warmup,
    }
    options = {"lr": lr, "betas": betas, "weight_decay": decay}
    return Transfer(Settings(target["name"], options, warm, reasons), factor, noise, groups)


def _complete(argument: str, given: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an optimizer with its defaults.

    Raises:
        ValueError, TypeError: for an unknown optimizer or option, or a learning rate that is not above 0.
    """
    config = {"name": given} if isinstance(given, str) else dict(given)
    name = config.pop("name", None)
    one_of(argument, name, tuple(FILTERS))
    assert name is not None
    accepted = inspect.signature(find(name)).parameters
    known_options(OPTIMIZERS[name].__name__, config, list(accepted)[1:])
    defaults = {key: accepted[key].default for key in ("lr", "betas", "weight_decay")}
    found = {"name": name, **defaults, **config}
    if not number("lr", found["lr"]) > 0:
        raise ValueError(
            f"lr={found['lr']} of {name}: must be above 0, it is the learning rate to start from"
        )
    return found


def _train(
    model: nn.Module,
    batches: Iterator[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    config: Mapping[str, Any],
    steps: int,
    micro_batches: int,
    clip_grad: float | None,
) -> None:
    """Train for some steps, with a linear warm-up over all of them."""
    if not steps:
        return
    options = {key: value for key, value in config.items() if key != "name"}
    optimizer = build_optimizer(model, config["name"], **options)
    peaks = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * (step + 1) / steps
        model.zero_grad(set_to_none=True)
        parts = list(islice(batches, micro_batches))
        if len(parts) < micro_batches:
            raise ValueError(
                f"pilot={steps}: the batches ended after step {step}; give more, or a shorter pilot"
            )
        for batch in parts:
            (loss(model, batch) / micro_batches).backward()  # type: ignore[no-untyped-call]
        if clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
        optimizer.step()


def _factor(source: Mapping[str, Any], target: Mapping[str, Any], noise: Mapping[str, Noise]) -> float:
    """Return the ratio of learning rates at which the updates of all parameters have the same length."""
    ours, theirs = (
        math.fsum(n.parameters * squared_length(config["name"], config, n.ratio) for n in noise.values())
        for config in (source, target)
    )
    return math.sqrt(ours / theirs)


def _labels(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the parameters in each group of `param_groups`."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {group["name"]: [names[id(p)] for p in group["params"]] for group in param_groups(model, 0.0, 0.0)}


def _betas(name: str, betas: tuple[float, ...], steps: int | None) -> tuple[tuple[float, ...], str]:
    """Return betas for a run of some steps, and why. Only Adan's have memories that are much alike."""
    memory = 1 / (1 - betas[-1])
    if steps is None or name != "adan":
        return betas, f"the default; its longest average remembers {memory:.0f} steps"
    if steps >= MEMORIES * memory:
        return betas, f"the default: {steps:,} steps are {steps / memory:.0f} times its longest memory"
    shrink = min(MEMORIES * memory / steps, SHRINK)
    shorter = tuple(float(f"{1 - (1 - beta) * shrink:.3g}") for beta in betas)
    return shorter, (
        f"{steps:,} steps are {steps / memory:.1f} times the longest memory of the default, not {MEMORIES}: "
        f"each 1 - beta times {shrink:.2g}"
    )


def _decay(source: Mapping[str, Any], to: str, lr: float) -> tuple[float, str]:
    """Return the weight decay with which a step shrinks weights by the same share, and why."""
    number("weight_decay", source["weight_decay"])
    share = source["lr"] * source["weight_decay"]
    if source["name"] == "adan":  # proximal: a division by 1 + lr wd
        share = share / (1 + share)
    if to == "adan":
        share = share / (1 - share)
    decay = float(f"{share / lr:.3g}")
    prox = " (Adan divides by 1 + lr x weight decay)" if "adan" in (source["name"], to) else ""
    return decay, f"lr x weight decay stays {source['lr'] * source['weight_decay']:.3g}{prox}"


def _warmup(betas: tuple[float, ...], steps: int | None, given: int) -> tuple[int, str]:
    """Return the steps of a linear warm-up, and why."""
    wanted = round(WARMUPS / (1 - betas[-1]))
    least = wanted if steps is None else min(wanted, round(SHARE * steps))
    if given >= least:
        return given, "as given"
    cap = f", but at most {SHARE:.0%} of the run" if least < wanted else ""
    return least, f"{WARMUPS} times the memory of the average of squares, {wanted} steps{cap}"
