"""Resolvers `${name:arguments}` for the configurations of all recipes; `lr` is in repro.train.scaling."""

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from repro.train.run_folder import run_name
from repro.train.scaling import scaled_lr


def by_data(value: Any, exceptions: dict[str, Any], _root_: DictConfig) -> Any:
    """Return `value`, or the exception for data.name. In configurations: `${by_data:VALUE,{NAME: VALUE}}`."""
    return exceptions.get(_root_.data.name, value)


def proxy_run(recipe: str, row: str, proxy: str) -> str:
    """Return the folder, below run.root, of the run that `scripts/reproduce.py <row> --scale proxy` makes."""
    return f"{recipe}/{run_name([f'+paper={row}', f'+proxy={proxy}'])}"


def register() -> None:
    """Register the resolvers with OmegaConf."""
    made: dict[str, Callable[..., Any]] = {"lr": scaled_lr, "by_data": by_data, "proxy_run": proxy_run}
    for name, resolver in made.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
