"""pass@k: the probability that at least one of k samples solves a task, estimated from n >= k samples.

Chen et al., "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374), equation 1.
"""

from collections.abc import Sequence

import numpy as np

from repro.errors import UserError


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Return the unbiased estimate for one task: 1 - C(samples - correct, k) / C(samples, k).

    It is computed as a product of `correct` factors in [0, 1].

    Raises:
        UserError: there are fewer samples than k.
    """
    if not 1 <= k <= samples:
        cure = f"k must be 1 to {samples}"
        raise UserError(f"pass@{k} cannot be estimated from {samples} samples of a task: {cure}")
    if not 0 <= correct <= samples:
        raise ValueError(f"{correct} of {samples} samples are correct")
    if samples - correct < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(samples - correct + 1, samples + 1)))


def estimate(
    counts: Sequence[tuple[int, int]], k: int, seed: int = 0, resamples: int = 10_000
) -> tuple[float, float, float]:
    """Return the mean of pass@k over tasks and the ends of its 95 % interval.

    The interval is a bootstrap over the tasks: the 2.5 % and 97.5 % quantiles of the mean over as many tasks
    drawn with replacement. It shows how much the result depends on the choice of tasks, and has no width if
    all tasks agree.

    Args:
        counts: numbers of samples and of correct samples of each task.
        k: of pass@k.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        UserError: a task has fewer than k samples, or there is no task.
    """
    if not counts:
        raise UserError("there is no task to estimate from")
    values = np.array([pass_at_k(samples, correct, k) for samples, correct in counts])
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)
