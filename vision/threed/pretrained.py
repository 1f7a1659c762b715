"""Where pre-trained models come from: a folder, or the Hugging Face hub; what goes wrong becomes one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers.utils import logging

from repro.errors import UserError

logging.disable_progress_bar()  # transformers shows one for each model that it reads or writes

EXTRA = "pip install -e '.[text-to-3d]'"
ON_THE_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")


def place_of(name: str) -> tuple[str, bool]:
    """Return what `from_pretrained` takes, and whether that is a folder; else it is a name on the hub.

    Raises:
        UserError: it is no folder, and cannot be a name on the hub.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path), True
    if path.exists() or not ON_THE_HUB.fullmatch(name):
        raise UserError(f"{name}: no such folder; name one, or a model on the Hugging Face hub")
    return name, False


@contextmanager
def reading(name: str, local: bool, expected: str) -> Iterator[None]:
    """Turn failures to read a model within the block into one line.

    Args:
        name: the folder, or the name on the hub.
        local: whether it is a folder.
        expected: what has to be there.

    Raises:
        UserError: it is not there, damaged, or out of reach.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        if local:
            raise UserError(f"{name}: {expected} cannot be read from this folder ({reason[:200]})") from error
        raise UserError(
            f"{name}: no such folder, and {expected} cannot be had from the Hugging Face hub "
            f"({reason[:200]}); without a network, run `hf download {name} --local-dir FOLDER` where there "
            "is one, and name that folder"
        ) from error


def whole(loaded: tuple[Any, dict[str, Any]]) -> Any:
    """Return the model of `from_pretrained(..., output_loading_info=True)`.

    Raises:
        ValueError: the files lack weights of the model, which would be random.
    """
    model, report = loaded
    for what in ("missing", "mismatched"):
        if names := report[f"{what}_keys"]:
            raise ValueError(f"{what} weights, such as {sorted(map(str, names))[0]}")
    return model


def library() -> ModuleType:
    """Return the package diffusers.

    Raises:
        UserError: it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise UserError(f"diffusers cannot be imported ({error}); run {EXTRA}") from error
    return diffusers
