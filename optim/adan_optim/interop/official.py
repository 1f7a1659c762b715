"""Whether the official packages, whose import names `adan` and `adam_mini` are, are installed, too."""

from importlib import metadata

from ..warn import warn

DISTRIBUTIONS = {"adan": "adan", "adam_mini": "adam-mini"}


def conflict(module: str) -> str:
    """Return what to do about the official distribution of a module; "" if it is not installed."""
    name = DISTRIBUTIONS[module]
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
    return (
        f"the official package {name} {version} is installed, too: `import {module}` finds adan-optim's. "
        f"Keep one: pip uninstall {name}, then pip install --force-reinstall --no-deps adan-optim"
    )


def warn_if_installed(module: str) -> None:
    """Warn if the official distribution of a module is installed; called by our module of that name."""
    if found := conflict(module):
        warn(found)
