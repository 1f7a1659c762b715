"""The prior that a configuration names."""

from vision.threed.analytic import Analytic
from vision.threed.config import TextTo3DConfig
from vision.threed.prior import Prior
from vision.threed.shapes import parse

VIEWS = 128  # of each object in the analytic prior


def build_prior(config: TextTo3DConfig) -> Prior:
    """Return the prior, frozen.

    Raises:
        UserError: it does not know the prompt, or cannot be loaded.
    """
    view, prior = config.view, config.prior
    if prior.name == "stable_diffusion":
        from vision.threed.diffusion import Diffusion  # its package is optional

        return Diffusion.load(
            str(prior.path),
            dtype=prior.dtype,
            attention_slicing=prior.attention_slicing,
            vae_slicing=prior.vae_slicing,
        )
    parse(config.prompt)
    if prior.name == "unet":
        from vision.threed.diffusion import Diffusion

        return Diffusion.load(str(prior.path), dtype=prior.dtype)
    low, high = view.elevation
    middles = (sum(values) / 2 for values in (view.radius, view.fov))
    return Analytic(view.size, VIEWS, (low, high), *middles)
