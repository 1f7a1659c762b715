"""Volume rendering (NeRF, arXiv 2003.08934, equation 3) of a scene, with shading and regularisers."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.threed.cameras import Cameras
from vision.threed.config import SceneConfig
from vision.threed.scenes import SCENES, Scene

CHUNK = 2**18  # samples at a time without gradients
EMPTY = 0.01  # share of light that a cell may absorb and still count as empty
MARGIN = 1e-5  # from 0 and 1, for logarithms of opacities: rounding takes sums of weights above 1


class Light(NamedTuple):
    """How the surfaces in each picture are lit (Lambertian; DreamFusion, section 3.2).

    direction: to the light, of length 1 [pictures, 3].
    ambient: the share of light that comes from everywhere [pictures]; 1: the colours themselves.
    textureless: whether surfaces are white [pictures], bool.
    """

    direction: Tensor
    ambient: Tensor
    textureless: Tensor


class Rendering(NamedTuple):
    """Pictures.

    colour: on the background [pictures, 3, side, side], in 0..1.
    opacity: [pictures, 1, side, side], in 0..1.
    normals: mean of the surface's, weighted by opacity [pictures, 3, side, side], in -1..1; None without.
    orientation: how much of them looks away from the camera [pictures]; None without.
    """

    colour: Tensor
    opacity: Tensor
    normals: Tensor | None = None
    orientation: Tensor | None = None


class Renderer(nn.Module):
    """A scene and its rendering: the model that is trained.

    In training, samples are stratified: one at a random place in each of equal sections of a ray. Else they
    are in the middles. With config.occupancy, those in empty cells of a coarse grid are left out.
    """

    occupied: Tensor | None
    calls: Tensor | None

    def __init__(self, config: SceneConfig) -> None:
        super().__init__()
        self.config = config
        self.scene: Scene = SCENES[config.name](config)
        cells = [config.occupancy] * 3
        self.register_buffer("occupied", torch.ones(cells, dtype=torch.bool) if config.occupancy else None)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64) if config.occupancy else None)

    def forward(
        self,
        cameras: Cameras,
        side: int,
        light: Light | None = None,
        background: Tensor | None = None,
        normals: bool = False,
    ) -> Rendering:
        """Return square pictures.

        Args:
            cameras: one for each picture.
            side: in pixels.
            light: None: the colours themselves.
            background: colours [pictures, 3]; None, or NaN for a picture: the scene's own.
            normals: also return normals and orientation; with `light` they are there anyway.
        """
        if self.calls is not None and self.training:
            if self.calls % self.config.occupancy_every == 0:
                self._look()
            self.calls += 1
        whole = torch.is_grad_enabled()
        pictures = len(cameras.radius) if whole else max(CHUNK // (side * side * self.config.samples), 1)
        parts = []
        for begin in range(0, len(cameras.radius), pictures):
            part = slice(begin, begin + pictures)
            parts.append(
                self._render(
                    Cameras(*(field[part] for field in cameras)),
                    side,
                    None if light is None else Light(*(field[part] for field in light)),
                    None if background is None else background[part],
                    normals,
                )
            )
        return Rendering(*map(_joined, zip(*parts, strict=True)))  # type: ignore[arg-type]

    def _render(
        self, cameras: Cameras, side: int, light: Light | None, background: Tensor | None, normals: bool
    ) -> Rendering:
        origins, directions = cameras.rays(side)
        near, section = _sections(origins, directions, self.config)
        number = self.config.samples
        at = torch.arange(number, device=near.device) + (
            torch.rand(*near.shape, number, device=near.device) if self.training else 0.5
        )
        depths = near[..., None] + section[..., None] * at  # [pictures, rays, samples]
        points = origins[:, None, None] + depths[..., None] * directions[:, :, None]
        kept = None if self.occupied is None else (section > 0)[..., None] & self._occupied(points)
        inside = _taken(points, kept)
        density, colour = self.scene(inside)
        absorbed = _spread(density, kept, depths) * section[..., None]  # optical depths
        before = absorbed.cumsum(-1) - absorbed
        weights = torch.exp(-before) * -torch.expm1(-absorbed)
        opacity = weights.sum(-1)
        facing = orientation = None
        if light is not None or normals:
            facing = self.scene.normals(inside)
        if light is not None:
            assert facing is not None
            colour = _lit(colour, facing, light, kept, depths)
        share = _taken(weights, kept)[:, None]
        seen = _spread(share * colour, kept, depths).sum(2)
        seen = seen + (1 - opacity)[..., None] * self._behind(directions, background)
        image = (len(origins), side, side, -1)
        shown = None
        if facing is not None:
            shown = _spread(share * facing, kept, depths).sum(2).view(image).movedim(-1, 1)
            along = _taken(directions[:, :, None].expand_as(points), kept)
            away = share[:, 0].detach() * (facing * along).sum(-1).clamp(min=0) ** 2
            orientation = _spread(away, kept, depths).sum((1, 2)) / (side * side)
        return Rendering(
            seen.view(image).movedim(-1, 1), opacity.view(image).movedim(-1, 1), shown, orientation
        )

    def _behind(self, directions: Tensor, background: Tensor | None) -> Tensor:
        """Return the colours [pictures, rays, 3] behind the scene."""
        own = self.scene.background(directions.flatten(0, 1)).view_as(directions)
        if background is None:
            return own
        given = background[:, None].expand_as(own)
        return torch.where(given.isnan(), own, given)

    def _occupied(self, points: Tensor) -> Tensor:
        """Return whether points [..., 3] are in cells that may hold something [...]."""
        assert self.occupied is not None
        side = self.config.occupancy
        cells = ((points.detach() / self.config.bound + 1) * (side / 2)).long().clamp(0, side - 1)
        return self.occupied[cells.unbind(-1)]

    @torch.no_grad()
    def _look(self) -> None:
        """Find the occupied cells, by the density at a random point of each."""
        assert self.occupied is not None
        side, bound = self.config.occupancy, self.config.bound
        axis = torch.arange(side, device=self.occupied.device)
        corners = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
        points = ((corners + torch.rand(corners.shape, device=corners.device)) * (2 / side) - 1) * bound
        density = torch.cat([self.scene.density(part) for part in points.split(CHUNK)])
        found = -torch.expm1(-density * (2 * bound / side)) > EMPTY
        # neighbours count too: surfaces move between two looks
        grown = F.max_pool3d(found.view(1, 1, side, side, side).float(), 3, 1, 1)
        self.occupied.copy_(grown[0, 0].bool())


def entropy(opacity: Tensor) -> Tensor:
    """Return the mean binary entropy of opacities, in bits: a scalar; 0 where all is opaque or empty."""
    share = opacity.clamp(MARGIN, 1 - MARGIN)
    return -(share * share.log2() + (1 - share) * (1 - share).log2()).mean()


def roughness(model: nn.Module) -> Tensor:
    """Return the mean square of the differences between neighbouring voxels of a Grid, a scalar."""
    (voxels,) = (value for name, value in model.named_parameters() if name.endswith("scene.voxels"))
    return torch.stack([voxels.diff(dim=axis).square().mean() for axis in (2, 3, 4)]).sum()


def _sections(origins: Tensor, directions: Tensor, config: SceneConfig) -> tuple[Tensor, Tensor]:
    """Return where rays enter the ball around the cube's contents, and the length of their sections.

    The ball has the radius `bound`. Both are [pictures, rays]; the length is 0 where a ray misses it.
    """
    nearest = -(origins[:, None] * directions).sum(-1)
    half = (config.bound**2 - (origins.square().sum(-1)[:, None] - nearest**2)).clamp(min=0).sqrt()
    near = (nearest - half).clamp(min=0)
    return near, (nearest + half - near).clamp(min=0) / config.samples


def _joined(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    whole = [part for part in parts if part is not None]
    return torch.cat(whole) if whole else None


def _taken(values: Tensor, kept: Tensor | None) -> Tensor:
    """Return the values [n, ...] of the samples that are kept, or of all, in one row."""
    return values.flatten(0, 2) if kept is None else _chosen(values, kept)


def _spread(values: Tensor, kept: Tensor | None, like: Tensor) -> Tensor:
    """Return values [n, ...] in their places [pictures, rays, samples, ...], and 0 for the others."""
    return values.view(*like.shape, *values.shape[1:]) if kept is None else _placed(values, kept)


# How many samples are kept depends on the data, so what follows is not compiled
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _chosen(values: Tensor, kept: Tensor) -> Tensor:
    return values[kept]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _placed(values: Tensor, kept: Tensor) -> Tensor:
    whole = values.new_zeros(*kept.shape, *values.shape[1:])
    whole[kept] = values
    return whole


def _lit(colour: Tensor, normals: Tensor, light: Light, kept: Tensor | None, like: Tensor) -> Tensor:
    """Return colours [n, 3] of lit surfaces with normals [n, 3]."""
    numbers = torch.arange(len(like), device=like.device)[:, None, None].expand(like.shape)
    picture = _taken(numbers, kept)
    ambient = light.ambient[picture][:, None]
    facing = (normals * light.direction[picture]).sum(-1, keepdim=True).clamp(min=0)
    colour = torch.where(light.textureless[picture][:, None], 1.0, colour)
    return colour * (ambient + (1 - ambient) * facing)
