"""What the configurations of vision compute, as `${name:arguments}`."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from repro.errors import UserError
from repro.run import run_name


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


def by_data(value: Any, exceptions: dict[str, Any], _root_: DictConfig) -> Any:
    """Return `value`, or the exception for data.name. In configurations: `${by_data:VALUE,{NAME: VALUE}}`."""
    return exceptions.get(_root_.data.name, value)


def proxy_run(recipe: str, row: str, proxy: str) -> str:
    """Return the folder, below run.root, of the run that `scripts/reproduce.py <row> --scale proxy` makes."""
    return f"{recipe}/{run_name([f'+paper={row}', f'+proxy={proxy}'])}"


for resolver in (patch, by_data, proxy_run):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
