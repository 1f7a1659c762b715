"""The signal and the noise of a model's gradient, measured over micro-batches."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.dtensor import is_dtensor


@dataclass(frozen=True)
class Noise:
    """The gradient of some parameters in one step.

    Attributes:
        signal: the squared norm of its mean; an estimate without bias, but not below 0.
        noise: the trace of its covariance.
        parameters: their number.
    """

    signal: float
    noise: float
    parameters: int

    @property
    def ratio(self) -> float:
        """The signal-to-noise ratio of a coordinate (root of the mean squares); infinite without noise."""
        return math.sqrt(self.signal / self.noise) if self.noise else math.inf


def measure(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    samples: int,
    micro_batches: int = 1,
) -> dict[str, Noise]:
    """Return the noise of every parameter that has a gradient, by its name.

    With K gradients g of mean m, the trace of the covariance is (sum |g|^2 - K |m|^2) / (K - 1), and |m|^2
    exceeds the squared norm of the true mean by that over K. It takes a buffer of the size of the model
    beside the gradients, and works on sharded parameters (DTensor) and under DistributedDataParallel, where a
    gradient is that of the batches of all processes. The model keeps its weights; its gradients are
    discarded.

    Args:
        batches: micro-batches of independent samples, at least `samples`.
        loss: mean loss of the model on a micro-batch, a scalar.
        samples: number of gradients, at least 2.
        micro_batches: number of those gradients whose mean one step takes: its noise is so much smaller.

    Raises:
        ValueError: there are too few batches, a loss is not finite, or no parameter has a gradient.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    taken = 0
    for batch in islice(batches, samples):
        model.zero_grad(set_to_none=True)
        found = loss(model, batch)
        if not torch.isfinite(found.detach()).all():
            raise ValueError(
                f"the loss of micro-batch {taken} is {float(found.detach())}: the noise cannot be measured"
            )
        found.backward()  # type: ignore[no-untyped-call]
        taken += 1
        for name, p in named.items():
            if p.grad is None:
                continue
            grad = (p.grad.to_dense() if p.grad.is_sparse else p.grad).detach().float()
            sums[name] = sums[name].add_(grad) if name in sums else grad.clone()
            squares[name] = squares.get(name, 0.0) + grad.square().sum()
    model.zero_grad(set_to_none=True)
    if taken < max(samples, 2):
        raise ValueError(f"samples={samples}, but there are {taken} batches: at least 2 gradients are needed")
    if not sums:
        raise ValueError(f"no parameter of {type(model).__name__} has a gradient")
    result = {}
    for name, total in sums.items():
        mean = number_of(total.square().sum()) / taken**2
        covariance = max((number_of(squares[name]) - taken * mean) / (taken - 1), 0.0)
        signal = max(mean - covariance / taken, 0.0)
        result[name] = Noise(signal, covariance / micro_batches, named[name].numel())
    return result


def together(noises: Iterable[Noise]) -> Noise:
    """Return the noise of several parameters as one."""
    every = list(noises)
    return Noise(sum(n.signal for n in every), sum(n.noise for n in every), sum(n.parameters for n in every))


def number_of(x: Tensor) -> float:
    """Return a scalar, of a DTensor the whole one."""
    return float(x.full_tensor() if is_dtensor(x) else x)  # type: ignore[attr-defined]
