"""What the configurations of vision compute beside repro.train.resolvers, as `${name:arguments}`."""

from omegaconf import OmegaConf

from repro.errors import UserError


def patch(size: int, least: int) -> int:
    """Return the side of a patch in pixels: an eighth of an image's, or a fourth, a half, all of it.

    The least of them that has `least` pixels. In configurations: `${patch:${data.size},LEAST}`.

    Raises:
        UserError: the images are smaller than that.
    """
    sides = [size // patches for patches in (8, 4, 2, 1) if size // patches >= least]
    if not sides:
        raise UserError(f"data.size={size}: must be at least {least}")
    return sides[0]


OmegaConf.register_new_resolver("patch", patch, replace=True)
