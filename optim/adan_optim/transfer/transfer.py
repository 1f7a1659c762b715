"""Settings for one optimizer from those of another, measured on the gradients of a short training."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.checks import known_options, number, one_of, whole_number
from ..registry import OPTIMIZERS, build_optimizer, find
from ..settings import Settings
from .lengths import FILTERS, squared_length
from .noise import Noise, measure, number_of, together

MEMORIES = 20  # of its longest average that a run should last; in shorter runs all memories shrink alike
SHRINK = 5  # the most by which they do
WARMUPS = 2  # memories of the average of squares that a linear warm-up should last (arXiv 1910.04209)
SHARE = 0.1  # of the run that a warm-up may take


@dataclass(frozen=True)
class Transfer:
    """What `transfer` found; `print(found)` shows settings, reasons, factors and noise.

    Attributes:
        settings: of the optimizer to move to.
        factor: its learning rate over the other's.
        factors: of each parameter tensor alone, by name; `factor` is their median, weighted by size.
        noise: of each parameter's gradient at the end of the pilot, by name; empty if none was measured.
        closed_form: the factor that the noise predicts, see `lengths`; None without noise.
    """

    settings: Settings
    factor: float
    factors: dict[str, float]
    noise: dict[str, Noise]
    closed_form: float | None

    def __str__(self) -> str:
        lines = [str(self.settings), "", f"factors on lr of {len(self.factors)} tensors: "
                 f"{min(self.factors.values()):.2f} to {max(self.factors.values()):.2f}"]  # fmt: skip
        if self.closed_form is not None:
            ratio = together(self.noise.values()).ratio
            lines.append(
                f"signal-to-noise ratio of the gradient: {ratio:.3g}; if it were white noise around a mean "
                f"that holds still, the factor would be {self.closed_form:.2f}"
            )
        return "\n".join(lines)


def transfer(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    like: str | Mapping[str, Any] = "adamw",
    to: str | Mapping[str, Any] = "adan",
    *,
    steps: int | None = None,
    warmup: int = 0,
    pilot: int = 400,
    samples: int = 32,
    micro_batches: int = 1,
    clip_grad: float | None = None,
) -> Transfer:
    """Return settings with which `to` takes steps as long as those of `like`, which was tuned.

    A pilot trains the model with `like`. Both optimizers also see its gradients in shadow, with weights of
    their own that stay at zero, so that each step leaves nothing but the update. In the second half of the
    pilot, the root mean square of one's updates over the other's is the factor on the learning rate: of each
    tensor alone, and of all by their median. Then the noise of the gradient is measured (`noise.measure`),
    for comparison with the closed form of `lengths`. Weights and buffers of the model are restored.

    Args:
        model: may be sharded, or in DistributedDataParallel; then all processes call this.
        batches: micro-batches of the training data, at least micro_batches x pilot + samples.
        loss: the mean loss of the model on a micro-batch, a scalar.
        like: "adamw", "nadamw", "adan" or "lion", or a mapping with such a "name" and the options that were
            tuned.
        to: one of the same names, or a mapping with such a "name", and "betas" that are to stay.
        steps: of the run to come, for betas and warm-up; None leaves the default betas.
        warmup: of `like`, in steps.
        pilot: steps; its first half has a linear warm-up and is not measured. At random weights the gradient
            is nearly the same in all batches, so a long pilot is closer to what most of a run is like.
        samples: gradients for the measurement of the noise, 20 to 50; 0 for none.
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
    whole_number("pilot", pilot, 2)
    whole_number("samples", samples, 0)
    whole_number("micro_batches", micro_batches)
    if steps is not None:
        whole_number("steps", steps)
    betas, why_betas = target["betas"], "as given"
    if isinstance(to, str) or "betas" not in to:
        betas, why_betas = _betas(target["name"], betas, steps)
    target["betas"] = betas = tuple(betas)
    stream = iter(batches)
    before = {name: x.detach().clone() for name, x in model.state_dict().items()}
    noise: dict[str, Noise] = {}
    try:
        factors = _compare(model, stream, loss, source, target, pilot, micro_batches, clip_grad)
        if samples:
            noise = measure(model, stream, loss, samples, micro_batches)
    finally:
        model.load_state_dict(before)

    sizes = {name: p.numel() for name, p in model.named_parameters()}
    factor = _median([(value, sizes[name]) for name, value in factors.items()])
    lr = float(f"{source['lr'] * factor:.3g}")
    decay, why_decay = _decay(source, target["name"], lr)
    warm, why_warmup = _warmup(betas, steps, warmup)
    reasons = {
        "lr": f"{factor:.2f} x that of {source['name']}, {source['lr']:g}: on the same gradients (steps "
        f"{pilot // 2} to {pilot} of the pilot) the updates are so much shorter",
        "betas": why_betas,
        "weight_decay": why_decay,
        "warmup": why_warmup,
    }
    settings = Settings(target["name"], {"lr": lr, "betas": betas, "weight_decay": decay}, warm, reasons)
    return Transfer(settings, factor, factors, noise, _closed_form(source, target, noise) if noise else None)


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


class Shadow:
    """An optimizer that sees a model's gradients but does not train it."""

    def __init__(self, config: Mapping[str, Any], params: Mapping[str, nn.Parameter]) -> None:
        self.params = {name: nn.Parameter(torch.zeros_like(p)) for name, p in params.items()}
        # its parameters start each step at zero, and no update depends on them without weight decay
        options = {**_options(config), "lr": 1.0, "weight_decay": 0.0}
        self.optimizer = build_optimizer(list(self.params.values()), config["name"], **options)
        self.squares: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, params: Mapping[str, nn.Parameter], count: bool) -> None:
        """Take a step with the gradients of `params`, and add up the squares of the updates if they count."""
        for name, p in self.params.items():
            p.zero_()
            p.grad = params[name].grad
        self.optimizer.step()
        for name, p in self.params.items():
            if count and p.grad is not None:
                self.squares[name] = self.squares.get(name, 0.0) + p.detach().float().square().sum()
            p.grad = None

    def lengths(self) -> dict[str, float]:
        """Return the root of the sum of squares of each tensor's updates."""
        return {name: math.sqrt(number_of(total)) for name, total in self.squares.items()}


def _compare(
    model: nn.Module,
    batches: Iterator[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    steps: int,
    micro_batches: int,
    clip_grad: float | None,
) -> dict[str, float]:
    """Train for some steps, and return the length of the source's updates over the target's, by tensor."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(model, source["name"], **_options(source))
    shadows = [Shadow(config, params) for config in (source, target)]
    peaks = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * min(1.0, (step + 1) / (steps // 2))
        model.zero_grad(set_to_none=True)
        parts = list(islice(batches, micro_batches))
        if len(parts) < micro_batches:
            raise ValueError(
                f"pilot={steps}: the batches ended after step {step}; give more, or a shorter pilot"
            )
        for batch in parts:
            found = loss(model, batch) / micro_batches
            if not torch.isfinite(found.detach()).all():
                raise ValueError(
                    f"the loss is {float(found.detach())} at step {step} of the pilot, with {source['name']} "
                    f"at lr={source['lr']:g}: was it tuned for this model and these batches?"
                )
            found.backward()  # type: ignore[no-untyped-call]
        if clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
        for shadow in shadows:
            shadow.step(params, step >= steps // 2)
        optimizer.step()
    ours, theirs = (shadow.lengths() for shadow in shadows)
    found_factors = {name: ours[name] / theirs[name] for name in ours if theirs.get(name) and ours[name]}
    if not found_factors:
        raise ValueError(f"no parameter of {type(model).__name__} has a gradient that is not zero")
    return found_factors


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "name"}


def _median(weighted: list[tuple[float, int]]) -> float:
    """Return the median of values with weights: half of the weight is at or below it."""
    total, so_far = sum(weight for _, weight in weighted), 0
    for value, weight in sorted(weighted):
        so_far += weight
        if 2 * so_far >= total:
            return value
    raise AssertionError("weights are positive")


def _closed_form(source: Mapping[str, Any], target: Mapping[str, Any], noise: Mapping[str, Noise]) -> float:
    """Return the median over the tensors of the factor that the noise predicts."""

    def factor(ratio: float) -> float:
        ours, theirs = (squared_length(config["name"], config, ratio) for config in (source, target))
        return math.sqrt(ours / theirs)

    return _median([(factor(each.ratio), each.parameters) for each in noise.values()])


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
    if source["name"] != "adan" and share >= 1:
        raise ValueError(
            f"lr={source['lr']:g} x weight_decay={source['weight_decay']:g} of {source['name']}: must be "
            "below 1, or a step leaves nothing of the weights"
        )
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
