"""The measure of language models."""

import math
import sys


def perplexity(loss: float) -> float:
    """Return the exponential of a loss in nats, infinite where it is beyond floats."""
    return math.exp(loss) if loss < math.log(sys.float_info.max) else math.inf
