"""Drop-in for `adan_pytorch.Adan` (adan-pytorch 0.1.0): `from adan_optim.dropins.adan_pytorch import Adan`.

The original leaves the moments at zero in its first step, which it counts in the bias corrections: its steps
are up to an eighth off. This one makes them as the paper does.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..adan import Adan as Core
from ..engine.checks import betas_of
from ..engine.rule import Group

__all__ = ["Adan"]

DEFAULT_BETAS = (0.02, 0.08, 0.01)


class Adan(Core):
    """`adan_optim.Adan` with the betas of the paper, which are 1 minus decay factors.

    In `param_groups` and state dicts they are decay factors, as in `adan_optim.Adan`.

    Args:
        params, lr, eps, weight_decay: see `adan_optim.Adan`; weight decay is proximal.
        betas: 1 minus the decay factors.
        restart_cond: must be None; the original resets the moments where it returns True.
        options: see `adan_optim.Adan`.

    Raises:
        TypeError: for a `restart_cond`.
        ValueError: for betas that are decay factors, and for what the base class refuses.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Sequence[float] = DEFAULT_BETAS,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        restart_cond: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        if restart_cond is not None:
            raise TypeError(
                "restart_cond: reset the moments in your loop instead, by optimizer.state.clear(): the next "
                "step is a first one"
            )
        super().__init__(params, lr, _decay_factors(betas), eps, weight_decay, **options)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, whose betas, if it has its own, are those of the paper, too."""
        if "betas" in param_group:
            param_group["betas"] = _decay_factors(param_group["betas"])
        super().add_param_group(param_group)


def _decay_factors(betas: Sequence[float]) -> tuple[float, ...]:
    betas = betas_of(Core.card, betas, DEFAULT_BETAS)
    if min(betas) > 0.5:
        raise ValueError(
            f"betas={betas}: here they are 1 minus the decay factors, which adan_optim.Adan takes"
        )
    return tuple(1 - beta for beta in betas)
