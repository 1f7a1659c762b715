"""One tuning rule for every optimizer: which learning rate and weight decay to try next.

Learning rates are a start times powers of two. The rule begins with a grid, then moves from the best point
to its neighbours until none of them is better (a pattern search: Hooke and Jeeves, 1961). It ends where twice
and half the learning rate are worse, and so are the other weight decays: an optimum in the interior of the
range tried, unless the budget ran out first.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Point:
    """A learning rate, as the exponent of two by which the start is scaled, and a weight decay."""

    octave: int
    weight_decay: float


@dataclass(frozen=True)
class Space:
    """The range in which an optimizer is tuned, and the number of runs.

    Attributes:
        start: the learning rate at octave 0.
        weight_decays: the grid has the first of them, or with `full` all.
        octaves: of the grid.
        full: whether the grid has every learning rate with every weight decay.
        budget: the largest number of runs.
    """

    start: float
    weight_decays: tuple[float, ...]
    octaves: tuple[int, ...] = (-4, -2, 0, 2, 4)
    full: bool = False
    budget: int = 12

    def lr(self, octave: int) -> float:
        """Return a learning rate, rounded as on the command line."""
        return float(f"{self.start * 2.0**octave:.6g}")

    def grid(self) -> list[Point]:
        """Return the points with which every search begins."""
        decays = self.weight_decays if self.full else self.weight_decays[:1]
        return [Point(octave, decay) for decay in decays for octave in self.octaves]


def best(losses: Mapping[Point, float]) -> Point:
    """Return the point with the smallest loss; of several, the one with the smallest learning rate."""
    return min(sorted(losses), key=lambda point: losses[point])


def next_points(space: Space, losses: Mapping[Point, float]) -> list[Point]:
    """Return the points to try next, within the budget; none if the search is over.

    Args:
        losses: of the points tried so far; infinite if a run diverged.
    """
    left = space.budget - len(losses)
    for wanted in ([*space.grid()], *_around(space, losses)):
        missing = [point for point in wanted if point not in losses]
        if missing:
            return missing[: max(left, 0)]
    return []


def _around(space: Space, losses: Mapping[Point, float]) -> list[list[Point]]:
    """Return the neighbours of the best point, in the order in which to try them."""
    if not losses or math.isinf(losses[found := best(losses)]):
        return []
    octave, decay = found.octave, found.weight_decay
    tried = [point.octave for point in losses if point.weight_decay == decay]
    several = len(space.weight_decays) > 1
    outward = [octave + 2 * side for side, end in ((-1, min(tried)), (1, max(tried))) if octave == end]
    return [
        [Point(further, decay) for further in outward if len(tried) > 1],  # a coarse step out of the grid
        [Point(octave - 1, decay), Point(octave + 1, decay)],
        [Point(octave, other) for other in space.weight_decays],
        [Point(octave, float(f"{10 * decay:g}"))]
        if 0 < decay >= max(space.weight_decays) and several
        else [],
    ]


def edges(space: Space, losses: Mapping[Point, float]) -> list[str]:
    """Return in words on which sides the best point has no worse neighbour; none for an interior optimum.

    A weight decay of 0 is the natural end of that axis.
    """
    found = best(losses)
    tried = [point.octave for point in losses if point.weight_decay == found.weight_decay]
    decays = [point.weight_decay for point in losses if point.octave == found.octave]
    sides = {
        "largest learning rate tried": found.octave == max(tried),
        "smallest learning rate tried": found.octave == min(tried),
        "largest weight decay tried": found.weight_decay == max(decays) and len(decays) > 1,
        "other weight decays not tried": len(decays) < len(space.weight_decays),
    }
    return [side for side, reached in sides.items() if reached]
