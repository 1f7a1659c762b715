"""Measures: how well pictures agree with the truth, or with their caption."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from repro.errors import UserError
from vision.threed.cameras import Cameras
from vision.threed.config import TextTo3DConfig
from vision.threed.prior import Prior
from vision.threed.shapes import CAPTIONS

# Whether the prompt is the best caption of pictures [n, 3, side, side] from cameras: [n], bool
Judge = Callable[[Tensor, Cameras], Tensor]


def overlap(colour: Tensor, opacity: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the IoU of silhouettes, and the PSNR of pictures in dB, of each view [views].

    Args:
        colour: [views, 3, side, side] in 0..1.
        opacity: [views, 1, side, side]; above one half it is the object.
        truth: [views, 4, side, side]: colour and silhouette.
    """
    mine, theirs = opacity[:, 0] > 0.5, truth[:, 3] > 0.5
    both, either = (mine & theirs).flatten(1).sum(1), (mine | theirs).flatten(1).sum(1)
    error = (colour - truth[:, :3]).square().flatten(1).mean(1)
    return both / either.clamp(min=1), -10 * error.clamp(min=1e-10).log10()


def build_judge(config: TextTo3DConfig, prior: Prior) -> Judge | None:
    """Return the judge of R-precision (Park et al., 2021): is the prompt the likeliest of all captions?

    With measure.clip, CLIP judges; else, in the embedded world, the prior itself. None: nobody can.

    Raises:
        UserError: the file of captions does not exist or is empty, or CLIP cannot be loaded.
    """
    measure = config.measure
    if measure.clip is None and config.prior.name == "stable_diffusion":
        return None
    captions = _captions(config)
    right = captions.index(config.prompt)
    if measure.clip is not None:
        from vision.threed.clip import Clip

        clip = Clip.load(measure.clip)
        return lambda images, cameras: clip.similarity(images, captions).argmax(1) == right
    views = config.prior.views

    def judge(images: Tensor, cameras: Cameras) -> Tensor:
        found = prior.likelihoods(prior.encode(images), captions, cameras if views else None)
        return found.argmax(1) == right

    return judge


def _captions(config: TextTo3DConfig) -> Sequence[str]:
    """Return the captions to choose from, the prompt among them."""
    path = config.measure.captions
    if path is None:
        captions = list(config.prompts or CAPTIONS)
    else:
        try:
            captions = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
        except OSError as error:
            raise UserError(f"measure.captions={path}: {error.strerror}; name a file of captions") from None
    return captions if config.prompt in captions else [config.prompt, *captions]
