"""GLUE's metrics, in percent, from the vectors of all predictions and all labels.

Where a correlation has no definition, because all predictions (or all labels) are the same, it is 0: such a
model has told nothing. So is F1 where nothing is predicted, or is, of the second class.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Vector = np.ndarray  # [examples]: numbers of classes, or scores
Metric = Callable[[Vector, Vector], float]  # (predictions, labels) -> share or correlation


def constant(values: Vector) -> bool:
    """Tell whether all values are the same, as far as a correlation can be computed from them."""
    spread = float(np.std(values))
    return not spread > 1e-12 * max(1.0, float(np.abs(values).max()))


def matthews(predictions: Vector, labels: Vector) -> float:
    """Return Matthews' correlation of two vectors of classes."""
    if constant(predictions) or constant(labels):
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def accuracy(predictions: Vector, labels: Vector) -> float:
    """Return the share of classes that are right."""
    return float(accuracy_score(labels, predictions))


def f1(predictions: Vector, labels: Vector) -> float:
    """Return F1 of the second of two classes."""
    return float(f1_score(labels, predictions, pos_label=1, zero_division=0.0))


def pearson(predictions: Vector, labels: Vector) -> float:
    """Return the linear correlation of two vectors of scores."""
    if constant(predictions) or constant(labels):
        return 0.0
    return float(pearsonr(predictions, labels).statistic)


def spearman(predictions: Vector, labels: Vector) -> float:
    """Return the correlation of the ranks of scores."""
    if constant(predictions) or constant(labels):
        return 0.0
    return float(spearmanr(predictions, labels).statistic)


OF_CLASSES: dict[str, Metric] = {"accuracy": accuracy, "f1": f1, "matthews_correlation": matthews}
OF_SCORES: dict[str, Metric] = {"pearson": pearson, "spearman": spearman}


def compute(names: tuple[str, ...], predictions: Vector, labels: Vector) -> dict[str, float]:
    """Return metrics by name, in percent."""
    every = OF_CLASSES | OF_SCORES
    return {name: 100 * every[name](predictions, labels) for name in names}
