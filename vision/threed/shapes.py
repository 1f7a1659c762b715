"""Pictures of simple objects by sphere tracing: 128 captions, 8 shapes in 8 colours and 2 sizes.

They are the embedded world of text to 3D: they stand for the photographs that a text-to-image model has seen,
for the distractors of R-precision, and for the truth on held-out views.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from repro.errors import UserError
from vision.threed.cameras import Cameras

Distance = Callable[[Tensor], Tensor]  # signed, of points [..., 3] to a surface [...]

STEPS, HIT = 24, 4e-3  # of a ray, and the distance at which it has arrived
SAMPLES = 2  # a side of a pixel
LIGHT = (0.4, 0.5, 0.77)  # its direction; not from the camera, so that shading tells the views apart
AMBIENT = 0.35


def _box(p: Tensor, *half: float) -> Tensor:
    outside = p.abs() - p.new_tensor(half)
    return outside.clamp(min=0).norm(dim=-1) + outside.amax(-1).clamp(max=0)


def _tube(p: Tensor, radius: float, half: float) -> Tensor:
    outside = torch.stack([p[..., :2].norm(dim=-1) - radius, p[..., 2].abs() - half], -1)
    return outside.clamp(min=0).norm(dim=-1) + outside.amax(-1).clamp(max=0)


def _ring(p: Tensor, axis: int, radius: float, thickness: float) -> Tensor:
    across = [p[..., other] for other in range(3) if other != axis]
    flat = torch.hypot(*across) - radius
    return torch.hypot(flat, p[..., axis]) - thickness


def _slopes(p: Tensor, sides: Tensor) -> Tensor:
    """A cone, or a pyramid: `sides` is the distance from the axis, in the norm of its base."""
    rise, run = 1.2, 0.6
    slope = (run * (p[..., 2] - rise / 2) + rise * sides) / (rise**2 + run**2) ** 0.5
    return torch.maximum(slope, -p[..., 2] - rise / 2)


def _mug(p: Tensor) -> Tensor:
    up = p.new_tensor([0.0, 0.0, 0.12])
    cup = torch.maximum(_tube(p, 0.42, 0.5), -_tube(p - up, 0.32, 0.5))
    handle = torch.maximum(_ring(p - p.new_tensor([0.0, 0.45, 0.0]), 0, 0.26, 0.08), 0.38 - p[..., 1])
    return torch.minimum(cup, handle)


def _chair(p: Tensor) -> Tensor:
    seat = _box(p, 0.42, 0.42, 0.06)
    back = _box(p - p.new_tensor([-0.36, 0.0, 0.32]), 0.06, 0.42, 0.32)
    leg = torch.cat([p[..., :2].abs() - 0.35, p[..., 2:] + 0.32], -1)
    return torch.minimum(torch.minimum(seat, back), _box(leg, 0.06, 0.06, 0.3))


SHAPES: dict[str, Distance] = {
    "sphere": lambda p: p.norm(dim=-1) - 0.55,
    "cube": lambda p: _box(p, 0.45, 0.45, 0.45),
    "torus": lambda p: _ring(p, 0, 0.45, 0.17),  # upright: its hole is seen from the front and the back
    "cylinder": lambda p: _tube(p, 0.38, 0.58),
    "cone": lambda p: _slopes(p, p[..., :2].norm(dim=-1)),
    "pyramid": lambda p: _slopes(p, p[..., :2].abs().amax(-1)),
    "mug": _mug,
    "chair": _chair,
}
COLOURS = {
    "red": (0.86, 0.14, 0.12),
    "green": (0.15, 0.62, 0.20),
    "blue": (0.13, 0.28, 0.85),
    "yellow": (0.95, 0.83, 0.10),
    "orange": (0.96, 0.50, 0.06),
    "purple": (0.52, 0.16, 0.68),
    "cyan": (0.10, 0.74, 0.80),
    "brown": (0.45, 0.27, 0.13),
}
SIZES = {"": 1.0, "small": 0.6}


class Caption(NamedTuple):
    """The words of a caption: keys of SIZES, COLOURS and SHAPES."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        words = " ".join(filter(None, self))
        return f"a{'n' * (words[0] in 'aeiou')} {words}"


ALL = tuple(Caption(*words) for words in itertools.product(SIZES, COLOURS, SHAPES))
CAPTIONS = tuple(map(str, ALL))


def parse(prompt: str) -> Caption:
    """Return the words of a prompt, such as "a small red torus".

    Raises:
        UserError: it is none of CAPTIONS.
    """
    try:
        return ALL[CAPTIONS.index(" ".join(prompt.lower().split()))]
    except ValueError:
        raise UserError(
            f"prompt={prompt!r}: without a text-to-image model it must be an object of the embedded world, "
            f'"a [small] COLOUR SHAPE": {", ".join(COLOURS)}; {", ".join(SHAPES)}'
        ) from None


def shade(size: str, shape: str, cameras: Cameras, side: int) -> Tensor:
    """Return brightness and silhouette [cameras, 2, side, side] of an object, in 0..1; outside both are 0."""
    scale, distance = SIZES[size], SHAPES[shape]
    origins, directions = cameras.rays(side * SAMPLES)
    origins = origins[:, None].expand_as(directions)
    # the bounding sphere of every object has radius 1: start where a ray comes nearest to the origin, minus 1
    nearest = -(origins * directions).sum(-1)
    points = origins + (nearest - 1)[..., None] * directions
    near = points.norm(dim=-1) < 1.5
    points, directions = points[near] / scale, directions[near]
    for _ in range(STEPS):
        points = points + distance(points)[:, None] * directions
    hit = distance(points) < HIT
    points = points[hit].requires_grad_()
    with torch.enable_grad():
        (normals,) = torch.autograd.grad(distance(points).sum(), points)
    light = F.normalize(normals.new_tensor(LIGHT), dim=0)
    lit = AMBIENT + (1 - AMBIENT) * (F.normalize(normals, dim=-1) @ light).clamp(min=0)
    pixels = torch.zeros(2, *near.shape)
    inside = near.nonzero()[hit].unbind(-1)
    pixels[0][inside], pixels[1][inside] = lit, 1.0
    grid = pixels.unflatten(-1, (side * SAMPLES, side * SAMPLES))
    return F.avg_pool2d(grid, SAMPLES).transpose(0, 1)


def render(captions: Sequence[str], cameras: Cameras, side: int) -> Tensor:
    """Return a picture of each caption's object, from the camera with its number.

    Returns:
        Red, green and blue on white, and the silhouette: [captions, 4, side, side], float32 in 0..1.

    Raises:
        UserError: a caption is none of CAPTIONS.
    """
    parsed = [parse(caption) for caption in captions]
    pictures = torch.empty(len(captions), 4, side, side)
    for size, shape in sorted({(words.size, words.shape) for words in parsed}):
        mine = torch.tensor([(words.size, words.shape) == (size, shape) for words in parsed])
        lit, silhouette = shade(size, shape, Cameras(*(field[mine] for field in cameras)), side).unbind(1)
        colours = torch.tensor([COLOURS[words.colour] for words in parsed])[mine]
        colour = colours[:, :, None, None] * lit[:, None] + 1 - silhouette[:, None]
        pictures[mine] = torch.cat([colour, silhouette[:, None]], 1)
    return pictures
