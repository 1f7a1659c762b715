"""Score distillation: the gradient that a frozen model of images sends to a rendering (arXiv 2209.14988)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.threed.cameras import Cameras

TIMES = 1000


def scaled_linear(first: float = 0.00085, last: float = 0.012) -> Tensor:
    """Return the share of the signal's variance at each time step [TIMES], as Stable Diffusion has it."""
    betas = torch.linspace(first**0.5, last**0.5, TIMES, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


class Prior(nn.Module, ABC):
    """A frozen model of images, as score distillation needs it.

    Attributes:
        alphas: the share of the signal's variance at each time step [times]; a buffer.
    """

    alphas: Tensor

    def encode(self, images: Tensor) -> Tensor:
        """Return images [n, 3, h, w] in 0..1 as samples of the model's space, with their gradient."""
        return images * 2 - 1

    @abstractmethod
    def noise(self, noisy: Tensor, times: Tensor, captions: Sequence[str], cameras: Cameras | None) -> Tensor:
        """Return the noise that the model finds in noisy samples.

        Args:
            noisy: [n, ...], each sqrt(alpha) of a sample and sqrt(1 - alpha) of noise.
            times: their time steps [n], int64.
            captions: of each; "" is none.
            cameras: of each; None: the view is not told.

        Raises:
            UserError: the model does not know a caption.
        """

    def mixed(self, samples: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return samples [n, ...] with noise at the time steps [n]."""
        alphas = self.alphas[times].view(-1, *[1] * (samples.ndim - 1))
        return alphas.sqrt() * samples + (1 - alphas).sqrt() * noise

    def guided(
        self, noisy: Tensor, times: Tensor, captions: Sequence[str], cameras: Cameras | None, guidance: float
    ) -> Tensor:
        """Return the noise with classifier-free guidance (arXiv 2207.12598): 1 is none."""
        without = self.noise(noisy, times, [""] * len(captions), None)
        return without + guidance * (self.noise(noisy, times, captions, cameras) - without)


def distil(
    prior: Prior,
    samples: Tensor,
    caption: str,
    cameras: Cameras | None,
    guidance: float,
    times: tuple[float, float],
) -> Tensor:
    """Return a loss, a scalar, whose gradient is that of score distillation.

    That is w(t) (noise found - noise added) for each sample, with w(t) = 1 - alpha(t), averaged over the
    samples. The loss is half its square: it also tells how far the samples are from what the prior expects.

    Args:
        samples: of the prior's space [n, ...], see Prior.encode.
        caption: of all.
        cameras: of each; None: the view is not told.
        guidance: of Prior.guided.
        times: range of the time steps drawn, as shares of all.
    """
    last = len(prior.alphas) - 1
    low, high = (round(share * last) for share in times)
    drawn = torch.randint(low, high + 1, (len(samples),), device=samples.device)
    with torch.no_grad():
        noise = torch.randn_like(samples)
        noisy = prior.mixed(samples, noise, drawn)
        found = prior.guided(noisy, drawn, [caption] * len(samples), cameras, guidance)
        weights = (1 - prior.alphas[drawn]).view(-1, *[1] * (samples.ndim - 1))
        goal = samples - weights * (found - noise)
    return 0.5 * F.mse_loss(samples, goal, reduction="sum") / len(samples)


@torch.no_grad()
def likelihoods(
    prior: Prior, samples: Tensor, captions: Sequence[str], cameras: Cameras | None, times: Sequence[float]
) -> Tensor:
    """Return how likely the prior finds each sample under each caption [samples, captions].

    It is minus the mean error of the noise found, over time steps that are given as shares of all; the noise
    is the same for all captions (a diffusion classifier, arXiv 2303.16203).
    """
    generator = torch.Generator().manual_seed(0)
    errors = samples.new_zeros(len(samples), len(captions))
    for share in times:
        at = torch.full((len(samples),), round(share * (len(prior.alphas) - 1)), device=samples.device)
        noise = torch.randn(samples.shape, generator=generator).to(samples)
        noisy = prior.mixed(samples, noise, at)
        for column, caption in enumerate(captions):
            found = prior.noise(noisy, at, [caption] * len(samples), cameras)
            errors[:, column] += (found - noise).square().flatten(1).mean(1)
    return -errors / len(times)
