"""Scenes: density and colour at any point, and the colour behind everything in any direction."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.threed.config import SceneConfig
from vision.threed.hashgrid import HashEncoding


class Scene(nn.Module, ABC):
    """Density and colour in the cube from -bound to bound.

    The raw density gets a blob around the origin, so that there is something to see from the first step, and
    an activation that makes it positive.
    """

    def __init__(self, config: SceneConfig) -> None:
        super().__init__()
        self.config = config
        self.behind = Background() if config.background == "learned" else None

    @abstractmethod
    def raw(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the raw density [n] and the raw colour [n, 3] of points [n, 3] in -1..1, the cube."""

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return density [n], a share of light per length, and colour [n, 3] in 0..1 of points [n, 3]."""
        raw, colour = self.raw(points / self.config.bound)
        return self._activated(raw, points), _full(colour).sigmoid()

    def density(self, points: Tensor) -> Tensor:
        """Return the density [n] of points [n, 3]."""
        return self._activated(self.raw(points / self.config.bound)[0], points)

    def normals(self, points: Tensor) -> Tensor:
        """Return the directions [n, 3] in which the density of points [n, 3] falls, by central differences.

        Their length is 1, or 0 where the density is constant.
        """
        step = torch.eye(3, device=points.device) * self.config.normal_step
        moved = torch.cat([points + sign * axis for sign in (-1, 1) for axis in step])
        lower, upper = self.density(moved).view(2, 3, -1)
        return F.normalize((lower - upper).T, dim=-1, eps=1e-10)

    def background(self, directions: Tensor) -> Tensor:
        """Return the colours [n, 3] seen in directions [n, 3] behind everything: white, or learned."""
        return torch.ones_like(directions) if self.behind is None else self.behind(directions)

    def _activated(self, raw: Tensor, points: Tensor) -> Tensor:
        raw, config, distance = _full(raw), self.config, points.norm(dim=-1)
        if config.activation == "exp":
            blob = config.blob_density * torch.exp(-(distance**2) / (2 * config.blob_radius**2))
            return _TruncatedExp.apply(raw + blob)
        blob = config.blob_density * (1 - distance / config.blob_radius)
        return F.softplus(raw + blob)


def _full(x: Tensor) -> Tensor:
    """Return half-precision results of networks under autocast in float32, in which rays are summed up."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class _TruncatedExp(torch.autograd.Function):
    """The exponential, with a gradient that is bounded (Instant-NGP)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(max=15).exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return cast(Tensor, grad * x.clamp(-15, 15).exp())


class Grid(Scene):
    """A cube of voxels with trilinear interpolation: the scene that two cores can train."""

    def __init__(self, config: SceneConfig) -> None:
        super().__init__(config)
        side = config.resolution
        self.voxels = nn.Parameter(torch.zeros(1, 4, side, side, side))

    def raw(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw density and colour."""
        at = points.flip(-1)[None, :, None, None]  # grid_sample wants the last dimension first
        found = F.grid_sample(self.voxels, at, padding_mode="border", align_corners=True)
        found = found.view(4, -1)
        return found[0], found[1:].T


class HashGrid(Scene):
    """Hash encoding and a small MLP: the scene of stable-dreamfusion's option -O."""

    def __init__(self, config: SceneConfig) -> None:
        super().__init__(config)
        finest = round(config.finest * config.bound)
        self.encoding = HashEncoding(config.levels, 2, config.entries, 16, finest)
        self.network = mlp(self.encoding.width, 64, 4, layers=3)

    def raw(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw density and colour."""
        found = self.network(self.encoding((points + 1) / 2))
        return found[:, 0], found[:, 1:]


class NeRF(Scene):
    """Sines and cosines of the position, and an MLP with residual blocks (DreamFusion, appendix A.2)."""

    def __init__(self, config: SceneConfig) -> None:
        super().__init__(config)
        self.encoding = Sinusoids(config.frequencies)
        width = config.width
        self.first = nn.Linear(self.encoding.width, width)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(config.depth))
        self.last = nn.Linear(width, 4)

    def raw(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw density and colour."""
        hidden = self.first(self.encoding(points))
        for block in self.blocks:
            hidden = block(hidden)
        found = self.last(hidden)
        return found[:, 0], found[:, 1:]


class Residual(nn.Module):
    """x + W2 silu(W1 norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = (
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum [..., width]."""
        return cast(Tensor, x + self.outer(F.silu(self.inner(self.norm(x)))))


class Sinusoids(nn.Module):
    """Positions and their sines and cosines at frequencies 1, 2, 4, ... (NeRF, arXiv 2003.08934)."""

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.frequencies, self.width = frequencies, 3 + 6 * frequencies

    def forward(self, points: Tensor) -> Tensor:
        """Return the features [n, width] of points [n, 3]."""
        angles = (
            points[:, None] * 2.0 ** torch.arange(self.frequencies, device=points.device)[:, None]
        ).flatten(1)
        return torch.cat([points, angles.sin(), angles.cos()], 1)


class Background(nn.Module):
    """A colour for each direction."""

    def __init__(self) -> None:
        super().__init__()
        self.encoding = Sinusoids(6)
        self.network = mlp(self.encoding.width, 32, 3, layers=2)

    def forward(self, directions: Tensor) -> Tensor:
        """Return colours [n, 3] in 0..1 of directions [n, 3]."""
        return _full(self.network(self.encoding(directions))).sigmoid()


def mlp(inputs: int, hidden: int, outputs: int, layers: int) -> nn.Sequential:
    """Return `layers` linear layers with ReLU between them."""
    widths = [inputs, *[hidden] * (layers - 1), outputs]
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


SCENES: dict[str, Callable[[SceneConfig], Scene]] = {"grid": Grid, "hashgrid": HashGrid, "mlp": NeRF}
