"""OmegaConf resolvers of the vision configurations; repro.train.resolvers has those of all recipes."""

from omegaconf import OmegaConf

from repro.errors import UserError


def patch(size: int, minimum: int) -> int:
    """Return the side of a patch: the smallest of 1/8, 1/4, 1/2 and all of an image's with `minimum` pixels.

    In configurations: `${patch:${data.size},MINIMUM}`.

    Raises:
        UserError: the image is smaller than `minimum`.
    """
    sides = [size // patches for patches in (8, 4, 2, 1) if size // patches >= minimum]
    if not sides:
        raise UserError(f"data.size={size}: must be at least {minimum}")
    return sides[0]


OmegaConf.register_new_resolver("patch", patch, replace=True)
