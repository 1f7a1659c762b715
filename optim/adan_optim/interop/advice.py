"""Settings for Adan from those of AdamW: the authors' advice as numbers, with reasons."""

from typing import Any

from torch import Tensor

from ..engine.checks import number, one_of
from ..settings import Settings

_BETAS = ((0.98, 0.92, 0.99), "the paper's and the official default; tune the third first, then the first")
_PROX = (False, "every published result has the proximal form (issue 12)")

# Factors on AdamW's settings, and Adan's own settings, each with its reason.
REGIMES: dict[str, dict[str, tuple[Any, str]]] = {
    "pretrain": dict(
        lr=(5.0, "5 x AdamW's (issue 29); the paper's range is 5 to 10"),
        betas=_BETAS,
        weight_decay=(0.1, "a tenth of AdamW's (issue 29); most published recipes have 0.02"),
        no_prox=_PROX,
        warmup=(2.0, "twice AdamW's (issue 29), for the larger learning rate"),
    ),
    "finetune": dict(
        lr=(3.0, "3 x AdamW's: the advised range is 2 to 4 (issue 43)"),
        betas=_BETAS,
        weight_decay=(0.5, "half of AdamW's (issue 43)"),
        no_prox=_PROX,
        warmup=(1.0, "as AdamW's: no advice"),
    ),
    "diffusion": dict(
        lr=(2.0, "2 x AdamW's; more is possible (issue 48)"),
        betas=((0.98, 0.95, 0.95), "second 0.95 to 0.98 against a slow start, third 0.95 (issue 48)"),
        weight_decay=(1.0, "as AdamW's: no advice"),
        no_prox=(True, "decoupled decay, as AdamW's, is worth a try (issue 48)"),
        warmup=(1.0, "as AdamW's: no advice"),
    ),
}


def adan_from_adamw(
    *, lr: float | Tensor, weight_decay: float = 0.01, warmup: float = 0, regime: str = "pretrain"
) -> Settings:
    """Return settings for Adan in place of these of AdamW, by the advice of Adan's authors.

    | regime | lr | weight decay | warm-up | betas | no_prox | source |
    |---|---|---|---|---|---|---|
    | pretrain | x 5 (5 to 10) | x 0.1 | x 2 | 0.98, 0.92, 0.99 | False | issue 29; paper; issue 12 |
    | finetune | x 3 (2 to 4) | x 0.5 | x 1 | 0.98, 0.92, 0.99 | False | issue 43 |
    | diffusion | x 2 (or more) | x 1 | x 1 | 0.98, 0.95 (to 0.98), 0.95 | True | issue 48 |

    Issues are those of sail-sg/Adan on GitHub. The advice is for a first try: it did not settle the report
    behind issue 43, and for long training of a detector the authors advised a third beta of 0.999 (issue 39).

    Args:
        lr: AdamW's peak learning rate, a number or a one-element tensor.
        weight_decay: AdamW's.
        warmup: AdamW's warm-up, in steps or epochs; 0 stays 0.
        regime: "pretrain" (any training from scratch), "finetune" or "diffusion".

    Raises:
        ValueError, TypeError: for an unknown regime, or a value that is not a number >= 0.

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
        lr=_product(lr, advice["lr"][0]),
        betas=advice["betas"][0],
        weight_decay=_product(weight_decay, advice["weight_decay"][0]),
        no_prox=advice["no_prox"][0],
    )
    warm = type(warmup)(_product(warmup, advice["warmup"][0]))
    return Settings("adan", options, warm, {name: reason for name, (_, reason) in advice.items()})


def _product(value: Any, factor: float) -> Any:
    """The product without the digits that binary fractions add: 0.05 x 0.1 is 0.005."""
    product = value * factor
    return product if isinstance(product, Tensor) else float(f"{product:.12g}")
