"""Multi-resolution hash encoding (Instant-NGP, arXiv 2201.05989), in plain torch."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRIMES = 1, 2_654_435_761, 805_459_861  # of the paper's equation 4


class HashEncoding(nn.Module):
    """Features of points from tables of grid corners, one table for each of several resolutions.

    A level whose corners all fit in a table has one entry for each. In finer ones, corners share entries by
    their hash.

    Args:
        levels: resolutions, in geometric progression.
        features: numbers an entry.
        entries: of a table at most, as a power of two.
        base: cells along a side of the coarsest grid.
        finest: and of the finest one.
    """

    cells: Tensor
    sizes: Tensor
    begins: Tensor
    strides: Tensor
    corners: Tensor

    def __init__(
        self, levels: int = 16, features: int = 2, entries: int = 19, base: int = 16, finest: int = 2048
    ) -> None:
        super().__init__()
        growth = (finest / base) ** (1 / max(levels - 1, 1))
        cells = [int(base * growth**level + 1e-6) for level in range(levels)]
        sizes = [min((side + 1) ** 3, 2**entries) for side in cells]
        dense = [size == (side + 1) ** 3 for side, size in zip(cells, sizes, strict=True)]
        self.dense = sum(dense)  # levels without hashing, which come first
        self.width = levels * features
        self.table = nn.Parameter(torch.empty(sum(sizes), features).uniform_(-1e-4, 1e-4))
        constants = {
            "cells": cells,
            "sizes": sizes,
            "begins": [0, *itertools.accumulate(sizes[:-1])],  # of the levels in the table
            "strides": [(1, side + 1, (side + 1) ** 2) for side in cells],
            "corners": list(itertools.product((0, 1), repeat=3)),
        }
        for name, values in constants.items():
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def forward(self, points: Tensor) -> Tensor:
        """Return the features [n, levels * features] of points [n, 3] in 0..1."""
        scaled = points[:, None] * self.cells[:, None]  # [n, levels, 3]
        below = scaled.detach().floor().clamp(min=0).minimum(self.cells[:, None] - 1)
        inside = scaled - below
        smooth = inside * inside * (3 - 2 * inside)  # smoothstep, so that the gradient is continuous
        at = below.long()[:, :, None] + self.corners  # [n, levels, 8, 3]
        plain = (at[:, : self.dense] * self.strides[: self.dense, None]).sum(-1)
        hashed = at[:, self.dense :] * at.new_tensor(PRIMES)
        hashed = hashed[..., 0] ^ hashed[..., 1] ^ hashed[..., 2]
        entries = torch.cat([plain, hashed % self.sizes[self.dense :, None]], 1) + self.begins[:, None]
        weights = torch.where(self.corners.bool(), smooth[:, :, None], 1 - smooth[:, :, None]).prod(-1)
        found = F.embedding(entries, self.table)  # [n, levels, 8, features]
        return (weights[..., None] * found).sum(2).flatten(1)
