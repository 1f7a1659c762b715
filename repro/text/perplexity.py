"""Metrics of language models."""

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def perplexity(loss: float) -> float:
    """Return the exponential of a loss in nats, infinity on overflow."""
    return math.exp(loss) if loss < math.log(sys.float_info.max) else math.inf


def entropy(counts: NDArray[Any]) -> float:
    """Return the entropy, in nats, of the distribution of some counts, [outcomes]."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
