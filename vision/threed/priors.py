"""The prior that a configuration names."""

import functools

import torch

from vision.threed.analytic import Analytic
from vision.threed.config import TextTo3DConfig
from vision.threed.prior import Prior

VIEWS = 128  # of each object in the analytic prior


def build_prior(config: TextTo3DConfig) -> Prior:
    """Return the prior, frozen.

    Raises:
        UserError: it cannot be loaded.
    """
    view, prior = config.view, config.prior
    if prior.name != "analytic":
        from vision.threed.diffusion import Diffusion  # its package is optional

        device = torch.accelerator.current_accelerator() if prior.sequential_cpu_offload else None
        return Diffusion.load(
            str(prior.path),
            dtype=prior.dtype,
            device=device or "cpu",  # until the first batch
            attention_slicing=prior.attention_slicing,
            vae_slicing=prior.vae_slicing,
            sequential_cpu_offload=prior.sequential_cpu_offload,
        )
    return _world(view.size, (view.elevation[0], view.elevation[1]), *view.middle)


@functools.lru_cache(1)  # rendering it takes seconds, and several runs of a process share it
def _world(side: int, elevation: tuple[float, float], radius: float, fov: float) -> Analytic:
    return Analytic(side, VIEWS, elevation, radius, fov)
