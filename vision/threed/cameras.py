"""Cameras around a scene. The world is right-handed with z up; an object's front looks along +x."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from repro.train.seeding import Draws

OVERHEAD, FRONT = math.radians(60), math.radians(45)  # elevation from which, azimuth to which (DreamFusion)


class Cameras(NamedTuple):
    """Cameras that look at the origin; every field is float32 [cameras].

    azimuth: radians; 0 sees the front, pi / 2 the side at +y.
    elevation: radians; 0 is level, pi / 2 straight above.
    radius: distance from the origin.
    fov: angle of view from the lower to the upper edge, in radians.
    """

    azimuth: Tensor
    elevation: Tensor
    radius: Tensor
    fov: Tensor

    @property
    def position(self) -> Tensor:
        """The directions to the cameras from the origin, of length 1 [cameras, 3]."""
        level = self.elevation.cos()
        return torch.stack([level * self.azimuth.cos(), level * self.azimuth.sin(), self.elevation.sin()], -1)

    def rays(self, side: int) -> tuple[Tensor, Tensor]:
        """Return the rays through the centres of the pixels of square images.

        Returns:
            Origins [cameras, 3], and directions of length 1 [cameras, side * side, 3], rows from the top.
        """
        back = self.position
        right = torch.stack([-self.azimuth.sin(), self.azimuth.cos(), torch.zeros_like(self.azimuth)], -1)
        up = torch.linalg.cross(back, right)
        at = (torch.arange(side, device=back.device) + 0.5) / side * 2 - 1  # -1..1
        at = at * (self.fov / 2).tan()[:, None]  # [cameras, side]
        towards = -back[:, None, None] + at[:, None, :, None] * right[:, None, None]
        towards = towards - at[:, :, None, None] * up[:, None, None]
        return back * self.radius[:, None], torch.nn.functional.normalize(towards.flatten(1, 2), dim=-1)


def words(cameras: Cameras) -> list[str]:
    """Return what DreamFusion adds to the prompt (arXiv 2209.14988, section 3.2), for each camera."""
    found = []
    for azimuth, elevation in zip(cameras.azimuth.tolist(), cameras.elevation.tolist(), strict=True):
        turned = abs(math.remainder(azimuth, 2 * math.pi))
        side = "front" if turned < FRONT else "back" if turned > math.pi - FRONT else "side"
        found.append("overhead view" if elevation > OVERHEAD else f"{side} view")
    return found


def ring(number: int, elevation: float, radius: float, fov: float) -> Cameras:
    """Return cameras at equal distances around an object; angles in degrees."""
    azimuth = torch.arange(number) * (2 * math.pi / number)
    same = [torch.full((number,), value) for value in (math.radians(elevation), radius, math.radians(fov))]
    return Cameras(azimuth, *same)


def drawn(
    draws: Draws, elevation: tuple[float, float], radius: tuple[float, float], fov: tuple[float, float]
) -> Cameras:
    """Return random cameras, one for each sample of `draws`; the ranges of angles are in degrees."""
    low, high = torch.tensor([(-180.0, 180.0), elevation, radius, fov]).T
    values = torch.from_numpy(draws(range(4))).float() * (high - low) + low  # [cameras, 4]
    azimuth, elevations, radii, fovs = values.unbind(-1)
    return Cameras(azimuth.deg2rad(), elevations.deg2rad(), radii, fovs.deg2rad())
