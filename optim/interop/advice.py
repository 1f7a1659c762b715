"""What Adan is given where AdamW was used: the authors' advice, as numbers with their reasons."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..engine.checks import number, one_of


@dataclass(frozen=True)
class AdanSettings:
    """Settings for Adan; `print(settings)` shows them with their reasons.

    Attributes:
        options: arguments for `optim.Adan(params, **options)` or `build_optimizer(model, "adan", **options)`.
        warmup: length of the warm-up, in the unit in which AdamW's was given.
        reasons: one line for each option and for the warm-up, with the source.
    """

    options: dict[str, Any]
    warmup: float
    reasons: dict[str, str]

    def __str__(self) -> str:
        rows = {**self.options, "warmup": self.warmup}
        shown = {name: _shown(value) for name, value in rows.items()}
        widths = [max(map(len, column)) for column in (shown, shown.values())]
        return "\n".join(
            f"{name:{widths[0]}}  {value:{widths[1]}}  {self.reasons[name]}" for name, value in shown.items()
        )

    @property
    def yaml(self) -> str:
        """The lines of the options for a file in configs/optimizer."""
        text = {
            name: str(value).lower() if isinstance(value, bool) else _shown(value)
            for name, value in self.options.items()
        }
        return "\n".join(["name: adan", *(f"{name}: {value}" for name, value in text.items())])


@dataclass(frozen=True)
class _Regime:
    """One piece of advice: factors on AdamW's settings, and Adan's own, each with its reason."""

    lr: tuple[float, str]
    weight_decay: tuple[float, str]
    warmup: tuple[float, str]
    betas: tuple[tuple[float, float, float], str]
    no_prox: tuple[bool, str]


_BETAS = ((0.98, 0.92, 0.99), "the paper's and the official default; tune the third first, then the first")
_PROX = (False, "every published result has the proximal form (issue 12)")

REGIMES = {
    "pretrain": _Regime(
        lr=(5.0, "5 x AdamW's (issue 29); the paper's range is 5 to 10"),
        weight_decay=(0.1, "a tenth of AdamW's (issue 29); most published recipes have 0.02"),
        warmup=(2.0, "twice AdamW's (issue 29), for the larger learning rate"),
        betas=_BETAS,
        no_prox=_PROX,
    ),
    "finetune": _Regime(
        lr=(3.0, "3 x AdamW's: the advised range is 2 to 4 (issue 43)"),
        weight_decay=(0.5, "half of AdamW's (issue 43)"),
        warmup=(1.0, "as AdamW's: no advice"),
        betas=_BETAS,
        no_prox=_PROX,
    ),
    "diffusion": _Regime(
        lr=(2.0, "2 x AdamW's; more is possible (issue 48)"),
        weight_decay=(1.0, "as AdamW's: no advice"),
        warmup=(1.0, "as AdamW's: no advice"),
        betas=(
            (0.98, 0.95, 0.95),
            "second 0.95 to 0.98 against a slow start, third 0.95 (issue 48)",
        ),
        no_prox=(True, "decoupled decay, as AdamW's, is worth a try (issue 48)"),
    ),
}


def adan_from_adamw(
    *, lr: float | Tensor, weight_decay: float = 0.01, warmup: float = 0, regime: str = "pretrain"
) -> AdanSettings:
    """Settings for Adan where AdamW had these, by the advice of Adan's authors.

    | regime | lr | weight decay | warm-up | betas | no_prox | source |
    |---|---|---|---|---|---|---|
    | pretrain | x 5 (5 to 10) | x 0.1 | x 2 | 0.98, 0.92, 0.99 | False | issue 29; paper; issue 12 |
    | finetune | x 3 (2 to 4) | x 0.5 | x 1 | 0.98, 0.92, 0.99 | False | issue 43 |
    | diffusion | x 2 (or more) | x 1 | x 1 | 0.98, 0.95 (to 0.98), 0.95 | True | issue 48 |

    Issues are those of sail-sg/Adan on GitHub. It is advice for a first try: the report behind issue 43 was
    not settled by it, and training a detector for long was advised a third beta of 0.999 (issue 39).

    Args:
        lr: AdamW's peak learning rate.
        weight_decay: AdamW's.
        warmup: AdamW's warm-up, in steps or epochs; 0 stays 0.
        regime: "pretrain" (any training from scratch), "finetune" or "diffusion".

    Raises:
        ValueError, TypeError: for an unknown regime, or a number that is negative or not one.

    Example:
        >>> adan_from_adamw(lr=1e-3, weight_decay=0.05, warmup=500).options
        {'lr': 0.005, 'betas': (0.98, 0.92, 0.99), 'weight_decay': 0.005, 'no_prox': False}
    """
    one_of("regime", regime, tuple(REGIMES))
    number("lr", lr)
    number("weight_decay", weight_decay)
    number("warmup", warmup)
    advice = REGIMES[regime]
    options = dict(
        lr=_product(lr, advice.lr[0]),
        betas=advice.betas[0],
        weight_decay=_product(weight_decay, advice.weight_decay[0]),
        no_prox=advice.no_prox[0],
    )
    warm = _product(warmup, advice.warmup[0])
    reasons = {name: getattr(advice, name)[1] for name in (*options, "warmup")}
    return AdanSettings(options, type(warmup)(warm), reasons)


def _product(value: Any, factor: float) -> Any:
    """Without the digits that binary fractions add: 0.05 x 0.1 is 0.005."""
    product = value * factor
    return product if isinstance(product, Tensor) else float(f"{product:.12g}")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, bool):
        return str(value)
    text = f"{float(value):.12g}"
    return text.replace("e", ".0e") if "e" in text and "." not in text else text  # YAML wants the point
