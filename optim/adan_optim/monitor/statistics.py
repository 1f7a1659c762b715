"""Statistics of a stream of numbers, in bounded memory."""

import math
from collections import defaultdict


class Summary:
    """A stream of numbers in bounded memory: extremes, mean and variance, quantiles.

    Quantiles come from counts in bins with edges 2 % apart, so each is within 1 % of the number at that rank,
    whatever the order of the numbers. Numbers that are not finite are only counted.

    Source: Welford 1962 for the variance; DDSketch, arXiv 1908.10693, for the bins.

    Attributes:
        count, nonfinite: numbers seen, finite and not.
        first, last, min, max, mean: those of the finite numbers; NaN while there are none.
    """

    _GROWTH = math.log(1.01 / 0.99)
    _ZERO = 40000  # above the index of any float's bin, so that keys of either sign sort by size

    def __init__(self) -> None:
        self.count = self.nonfinite = 0
        self.first = self.last = self.min = self.max = self.mean = math.nan
        self._squares = 0.0  # the sum of squared differences from the mean
        self._bins: dict[int, int] = defaultdict(int)

    def add(self, x: float | None) -> None:
        """Add one number; None stands for one that is not finite."""
        if x is None or not math.isfinite(x):
            self.nonfinite += 1
            return
        if self.count == 0:
            self.first = self.min = self.max = x
            self.mean = 0.0
        self.count += 1
        self.last, self.min, self.max = x, min(x, self.min), max(x, self.max)
        before = x - self.mean
        self.mean += before / self.count
        self._squares += before * (x - self.mean)
        place = math.ceil(math.log(abs(x)) / self._GROWTH) + self._ZERO if x else 0
        self._bins[place if x > 0 else -place] += 1

    @property
    def deviation(self) -> float:
        """The standard deviation of the numbers so far (divided by their count)."""
        return math.sqrt(self._squares / self.count) if self.count else math.nan

    def quantile(self, q: float) -> float:
        """Return a number within 1 % of that at rank q (count - 1), rounded down; NaN if there is none."""
        rank = math.floor(q * (self.count - 1)) if self.count else -1
        for place in sorted(self._bins):
            rank -= self._bins[place]
            if rank < 0:
                x = math.exp((abs(place) - self._ZERO) * self._GROWTH) * 0.99 if place else 0.0
                return min(max(math.copysign(x, place), self.min), self.max)
        return math.nan
