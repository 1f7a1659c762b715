"""The prior of the embedded world in closed form: nothing is trained, and nothing is approximated."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from vision.threed.cameras import Cameras
from vision.threed.captions import COLOURS, SHAPES, SIZES, parse
from vision.threed.prior import Prior, scaled_linear
from vision.threed.shapes import shade

SHARPNESS = 0.1  # the time step at which captions are compared, as a share of all
SPREAD = math.radians(8)  # of the views that count for a camera: the standard deviation of their angle to it
GOLDEN = math.pi * (3 - 5**0.5)


class Analytic(Prior):
    """Pictures of every caption from `views` directions, each as likely as the others.

    The images of the world are a finite set, so the mean of the images behind a noisy one is their average,
    weighted by how likely each would have become it. A caption leaves its own images; a camera weighs images
    by the angle between their views and its own.

    A picture is brightness times colour where the object is, and white elsewhere, so the products of a sample
    with all pictures follow from those with the brightness and silhouette of the 16 objects without colour.
    """

    alphas: Tensor
    lit: Tensor
    empty: Tensor
    colours: Tensor
    towards: Tensor

    def __init__(
        self, side: int, views: int, elevation: tuple[float, float], radius: float, fov: float
    ) -> None:
        """Render the world.

        Args:
            side: of the images in pixels.
            views: number of directions, evenly spread over the elevations.
            elevation: their range, in degrees.
            radius: distance of the cameras.
            fov: their angle of view, in degrees.
        """
        super().__init__()
        low, high = (math.sin(math.radians(angle)) for angle in elevation)
        heights = low + (high - low) * (torch.arange(views) + 0.5) / views
        azimuths = (torch.arange(views) * GOLDEN) % (2 * math.pi)
        cameras = Cameras(
            azimuths, heights.asin(), torch.full((views,), radius), torch.full((views,), math.radians(fov))
        )
        self.objects = [(size, shape) for size in SIZES for shape in SHAPES]
        bar = tqdm(
            self.objects, desc="rendering the embedded world", unit="object", disable=None, leave=False
        )
        shaded = torch.stack([shade(size, shape, cameras, side) for size, shape in bar])
        # [objects, views, pixels]; images are in -1..1, so white is 1
        self.register_buffer("alphas", scaled_linear())
        self.register_buffer("lit", 2 * shaded[:, :, 0].flatten(2))
        self.register_buffer("empty", 1 - 2 * shaded[:, :, 1].flatten(2))
        self.register_buffer("colours", torch.tensor(list(COLOURS.values())))
        self.register_buffer("towards", cameras.position)
        self.side = side

    def noise(self, noisy: Tensor, times: Tensor, captions: Sequence[str], cameras: Cameras | None) -> Tensor:
        """Return the noise [n, 3, side, side]: what is left of the samples without the mean image."""
        alphas = self.alphas[times].view(-1, 1, 1, 1)
        return (noisy - alphas.sqrt() * self.mean(noisy, times, captions, cameras)) / (1 - alphas).sqrt()

    def mean(self, noisy: Tensor, times: Tensor, captions: Sequence[str], cameras: Cameras | None) -> Tensor:
        """Return the mean of the images that may be behind noisy samples [n, 3, side, side]."""
        likely = self._likely(noisy, times) + self._told(captions, cameras)
        weights = likely.flatten(1).softmax(-1).view_as(likely)
        mean = torch.einsum("novk,ovp->nkp", weights @ self.colours, self.lit)
        mean = mean + torch.einsum("nov,ovp->np", weights.sum(-1), self.empty)[:, None]
        return mean.view_as(noisy)

    @torch.no_grad()
    def likelihoods(self, samples: Tensor, captions: Sequence[str], cameras: Cameras | None) -> Tensor:
        """Return the log-likelihood of each sample, as one with some noise, under each caption."""
        times = torch.full((len(samples),), round(SHARPNESS * (len(self.alphas) - 1)), device=samples.device)
        likely = self._likely(self.alphas[times].sqrt().view(-1, 1, 1, 1) * samples, times)
        found = [
            (likely + self._told([caption] * len(samples), cameras)).flatten(1).logsumexp(-1)
            for caption in captions
        ]
        return torch.stack(found, -1)

    def _likely(self, noisy: Tensor, times: Tensor) -> Tensor:
        """Return the log-likelihood of noisy samples given each image, without what all images share.

        That is -|noisy - signal image|^2 / (2 variance) without |noisy|^2: [n, objects, views, colours].
        """
        alphas = self.alphas[times].view(-1, 1, 1, 1)
        pixels = noisy.flatten(2)
        products = torch.einsum("nkp,ovp->novk", pixels, self.lit) @ self.colours.T
        products = products + torch.einsum("np,ovp->nov", pixels.sum(1), self.empty)[..., None]
        return (alphas.sqrt() * products - alphas / 2 * self._squares()) / (1 - alphas)

    def _squares(self) -> Tensor:
        """Return the squared lengths of the images [objects, views, colours]."""
        lit = self.lit.square().sum(-1)[..., None] * self.colours.square().sum(-1)
        across = (self.lit * self.empty).sum(-1)[..., None] * self.colours.sum(-1)
        return lit + 2 * across + 3 * self.empty.square().sum(-1)[..., None]

    def _told(self, captions: Sequence[str], cameras: Cameras | None) -> Tensor:
        """Return the logarithm of how well images fit what is told [n, objects, views, colours]."""
        words = torch.zeros(len(captions), len(self.objects), 1, len(self.colours))
        for row, caption in zip(words, captions, strict=True):
            if caption:
                size, colour, shape = parse(caption)
                row.fill_(-math.inf)
                row[self.objects.index((size, shape)), :, list(COLOURS).index(colour)] = 0
        if cameras is None:
            return words.to(self.towards)
        angles = (cameras.position @ self.towards.T).clamp(-1, 1).acos()
        told = -0.5 * (angles / SPREAD).square()
        unconditional = torch.tensor([not caption for caption in captions], device=told.device)
        return words.to(told) + told.masked_fill(unconditional[:, None], 0)[:, None, :, None]
