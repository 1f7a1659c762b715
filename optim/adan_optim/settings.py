"""Settings for an optimizer that were derived from those of another, with the reasons."""

from dataclasses import dataclass
from typing import Any

from .text import aligned


@dataclass(frozen=True)
class Settings:
    """Settings for an optimizer; `print(settings)` shows them with their reasons.

    Attributes:
        name: of the optimizer: `build_optimizer(model, settings.name, **settings.options)`.
        options: its arguments.
        warmup: length of the warm-up, in the unit in which the other one's was given.
        reasons: one line for each option and for the warm-up, with the source.
    """

    name: str
    options: dict[str, Any]
    warmup: float
    reasons: dict[str, str]

    def __str__(self) -> str:
        values = {**self.options, "warmup": self.warmup}
        return "\n".join(aligned([(name, _shown(x), self.reasons[name]) for name, x in values.items()]))

    @property
    def yaml(self) -> str:
        """The options as lines for a file in configs/optimizer."""
        options = (f"{name}: {_shown(value).lower()}" for name, value in self.options.items())
        return "\n".join([f"name: {self.name}", *options])


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, bool):
        return str(value)
    text = f"{float(value):.12g}"
    return text.replace("e", ".0e") if "e" in text and "." not in text else text  # YAML needs the point
