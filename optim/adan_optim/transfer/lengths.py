"""How long an optimizer's update is, for a gradient of known noise: a closed form.

Let a coordinate of the gradient be g_t = mu + sigma xi_t, with independent xi_t of mean 0 and variance 1. The
update of the optimizers below is a weighted sum of gradients, over the root of an average of squares of
another such sum:

    numerator     E (sum_k a_k g_(t-k))^2 = mu^2 (sum a)^2 + sigma^2 sum a^2
    denominator   E (sum_k c_k g_(t-k))^2 = mu^2 (sum c)^2 + sigma^2 sum c^2

With s = mu / sigma the mean square of the update, in units of the learning rate, is therefore

    u(s)^2 = ((sum a)^2 s^2 + sum a^2) / ((sum c)^2 s^2 + sum c^2).

Two optimizers take steps of the same length if their learning rates are in the inverse ratio of u.
Assumptions: the noise is white; the mean holds still over the memory of the averages; the average of squares
is close to its expectation, as it remembers many steps; eps is negligible; bias corrections are over.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

END = 1e-9  # weights of gradients that are further back are left out


@dataclass(frozen=True)
class Filter:
    """A weighted sum of gradients: the squared sum of its weights, and the sum of their squares."""

    signal: float
    noise: float


def of_weights(weights: Sequence[float]) -> Filter:
    """Return the filter of weights a_0, a_1, ... of the newest gradient, the one before it, and so on."""
    return Filter(math.fsum(weights) ** 2, math.fsum(w * w for w in weights))


def average(beta: float) -> list[float]:
    """Return the weights of an exponential average with bias correction: (1 - beta) beta^k."""
    length = 1 if beta == 0 else math.ceil(math.log(END) / math.log(beta))
    return [(1 - beta) * beta**k for k in range(length)]


def _adamw(betas: Sequence[float]) -> tuple[Filter, Filter]:
    return of_weights(average(betas[0])), of_weights([1.0])


def _nadamw(betas: Sequence[float]) -> tuple[Filter, Filter]:
    beta = betas[0]
    return of_weights(_sum(average(beta), [1.0], beta, 1 - beta)), of_weights([1.0])


def _adan(betas: Sequence[float]) -> tuple[Filter, Filter]:
    beta1, beta2, _ = betas
    rises = average(beta2)
    differences = _sum([*rises, 0.0], [0.0, *rises], 1.0, -1.0)  # of g_t - g_(t-1)
    return of_weights(_sum(average(beta1), differences, 1.0, beta2)), of_weights([1 + beta2, -beta2])


def _lion(betas: Sequence[float]) -> tuple[Filter, Filter]:
    return Filter(1.0, 1.0), Filter(1.0, 1.0)  # a sign: of length 1 for any gradient


FILTERS: Mapping[str, Callable[[Sequence[float]], tuple[Filter, Filter]]] = {
    "adamw": _adamw,
    "nadamw": _nadamw,
    "adan": _adan,
    "lion": _lion,
}


def squared_length(name: str, options: Mapping[str, Any], ratio: float) -> float:
    """Return u(s)^2 of an optimizer in FILTERS.

    Args:
        options: of the optimizer, with `betas`.
        ratio: s, the signal-to-noise ratio, from 0 to infinity.
    """
    numerator, denominator = FILTERS[name](options["betas"])
    if math.isinf(ratio):
        return numerator.signal / denominator.signal
    s2 = ratio * ratio
    return (numerator.signal * s2 + numerator.noise) / (denominator.signal * s2 + denominator.noise)


def _sum(a: Sequence[float], b: Sequence[float], of_a: float, of_b: float) -> list[float]:
    length = max(len(a), len(b))
    padded = ([*x, *[0.0] * (length - len(x))] for x in (a, b))
    return [of_a * x + of_b * y for x, y in zip(*padded, strict=True)]
