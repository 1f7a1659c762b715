"""The measures of language models."""

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def perplexity(loss: float) -> float:
    """Return the exponential of a loss in nats, infinite where it is beyond floats."""
    return math.exp(loss) if loss < math.log(sys.float_info.max) else math.inf


def entropy(counts: NDArray[Any]) -> float:
    """Return the nats of one of several outcomes that came so often."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
