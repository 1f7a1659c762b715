"""What the configurations of vision compute in addition to repro.train.resolvers, as `${name:arguments}`."""

from omegaconf import OmegaConf

from repro.errors import UserError


def patch(size: int, minimum: int) -> int:
    """Return the side of a patch in pixels: an eighth of an image's, or a fourth, a half, all of it.

    The smallest with at least `minimum` pixels. In configurations: `${patch:${data.size},MINIMUM}`.

    Raises:
        UserError: the images are smaller than that.
    """
    sides = [size // patches for patches in (8, 4, 2, 1) if size // patches >= minimum]
    if not sides:
        raise UserError(f"data.size={size}: must be at least {minimum}")
    return sides[0]


OmegaConf.register_new_resolver("patch", patch, replace=True)
