"""Measures: how well pictures agree with the truth, or with their caption."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from repro.errors import UserError
from vision.threed.cameras import Cameras
from vision.threed.captions import CAPTIONS
from vision.threed.config import TextTo3DConfig
from vision.threed.prior import Prior

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
        UserError: the file of captions does not exist, or CLIP cannot be loaded.
    """
    measure = config.measure
    if measure.clip is not None:
        from vision.threed.clip import Clip  # it takes seconds

        captions = _captions(config)
        clip = Clip.load(measure.clip)
        right = captions.index(config.prompt)
        return lambda images, cameras: (clip.similarity(images, captions).argmax(1) == right).to(
            images.device
        )
    if config.prior.name == "stable_diffusion":
        return None

    def judge(images: Tensor, cameras: Cameras) -> Tensor:
        told = cameras if config.prior.views else None
        return prior.likelihoods(prior.encode(images), CAPTIONS, told).argmax(1) == CAPTIONS.index(
            config.prompt
        )

    return judge


def _captions(config: TextTo3DConfig) -> list[str]:
    """Return the captions for CLIP to choose from: those of a file, or of a row; the prompt is among them."""
    path, captions = config.measure.captions, [] if config.row is None else config.row.sweep.get("prompt", [])
    if path is not None:
        try:
            captions = [line.strip() for line in Path(path).expanduser().read_text().splitlines()]
        except OSError as error:
            raise UserError(f"measure.captions={path}: {error.strerror}; name a file of captions") from None
    if not any(caption not in ("", config.prompt) for caption in captions):
        raise UserError(
            "measure.captions is not set: CLIP needs other captions to choose from, a file of lines"
        )
    return sorted({config.prompt, *filter(None, captions)})
