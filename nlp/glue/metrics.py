"""GLUE's metrics, in percent, from the vectors of all predictions and all labels.

A correlation is undefined if all predictions, or all labels, are the same; it is then 0. So is F1 if the
second class is never predicted, or never correct.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Vector = np.ndarray  # [examples]: numbers of classes, or scores

# F1 is that of the second of two classes
OF_CLASSES: dict[str, Callable[[Vector, Vector], float]] = {
    "accuracy": accuracy_score,
    "f1": partial(f1_score, pos_label=1, zero_division=0.0),
    "matthews_correlation": matthews_corrcoef,
}
OF_SCORES: dict[str, Callable[[Vector, Vector], Any]] = {"pearson": pearsonr, "spearman": spearmanr}


def compute(names: tuple[str, ...], predictions: Vector, labels: Vector) -> dict[str, float]:
    """Return metrics by name, in percent; predictions, labels: [examples]."""

    def value(name: str) -> float:
        if name not in ("accuracy", "f1") and (_constant(predictions) or _constant(labels)):
            return 0.0
        if name in OF_CLASSES:
            return float(OF_CLASSES[name](labels, predictions))
        return float(OF_SCORES[name](predictions, labels).statistic)

    return {name: 100 * value(name) for name in names}


def _constant(values: Vector) -> bool:
    """Tell whether all values are the same, up to the precision of a correlation."""
    return not float(np.std(values)) > 1e-12 * max(1.0, float(np.abs(values).max()))
