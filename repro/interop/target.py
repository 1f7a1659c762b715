"""A model of timm or transformers that exported weights load into."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from repro.interop.checkpoint import Checkpoint, Weights

Made = tuple["Target", Weights, list[str]]
Translation = Callable[[Checkpoint, Weights, Any, int | None], Made]


class Unfit(Exception):
    """Weights that do not load into a model."""


@dataclass(frozen=True)
class Target:
    """A model of a library.

    Attributes:
        library: "timm" or "transformers".
        model: the name for `timm.create_model`, or the class in transformers.
        config: the keywords of create_model, or of the class's configuration.
    """

    library: str
    model: str
    config: dict[str, Any]

    def __str__(self) -> str:
        """Return the call that builds the model."""
        words = ", ".join(f"{key}={value!r}" for key, value in self.config.items())
        if self.library == "timm":
            return f"timm.create_model({', '.join(filter(None, (repr(self.model), words)))})"
        return f"transformers.{self.model} with {words}"

    def check(self, weights: Weights) -> None:
        """Load the weights into the model; names must match one to one, and shapes too.

        Raises:
            Unfit: there is no such model, or the weights do not fit.
            ImportError: the library is not installed.
        """
        (_check_timm if self.library == "timm" else _check_transformers)(self, weights)


def _check_timm(target: Target, weights: Weights) -> None:
    import timm

    try:
        with torch.device("meta"):
            model = timm.create_model(target.model, **target.config)
        model.load_state_dict(weights, strict=True, assign=True)
    except Exception as error:  # odd sizes can fail in any way
        raise Unfit(_short(str(error))) from None


def _check_transformers(target: Target, weights: Weights) -> None:
    import transformers
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(50)  # critical: `report` has everything
    logging.disable_progress_bar()
    try:
        kind: Any = getattr(transformers, target.model, None)
        if getattr(kind, "config_class", None) is None:
            raise ValueError(f"transformers has no model {target.model}")
        config = kind.config_class(**target.config)
        # from_pretrained knows tied weights and older names
        _, report = kind.from_pretrained(None, config=config, state_dict=weights, output_loading_info=True)
    except Exception as error:  # as above
        raise Unfit(_short(str(error))) from None
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
    for what in ("missing", "unexpected", "mismatched"):
        if names := report[f"{what}_keys"]:
            raise Unfit(f"{what} {', '.join(sorted(map(str, names))[:4])}")


def _short(message: str) -> str:
    """Return torch's report of keys as one line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[1:] if len(lines) > 1 else lines)[:300]
