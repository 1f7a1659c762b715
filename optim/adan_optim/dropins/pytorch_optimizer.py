"""Drop-in for `pytorch_optimizer.Adan` (4.1.0): `from adan_optim.dropins.pytorch_optimizer import Adan`."""

from collections.abc import Sequence

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ..adan import Adan as Core
from ..base import Options

__all__ = ["Adan"]


class Adan(Core):
    """`adan_optim.Adan` with the arguments of pytorch_optimizer.

    Args:
        params, lr, betas, weight_decay, max_grad_norm, foreach, eps: see `adan_optim.Adan`.
        weight_decouple: decoupled weight decay instead of the proximal one; `no_prox` of `adan_optim.Adan`.
        fused, take_gradients, options: see `adan_optim.Adan`, `maximize` among them. Unknown
            ones are errors, where the original accepts them without effect.

    Raises:
        TypeError, ValueError: for what the base class refuses.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Sequence[float] = (0.98, 0.92, 0.99),
        weight_decay: float = 0.0,
        weight_decouple: bool = False,
        max_grad_norm: float = 0.0,
        foreach: bool | None = None,
        eps: float = 1e-8,
        *,
        fused: bool | None = None,
        take_gradients: bool = False,
        **options: Unpack[Options],
    ) -> None:
        self._refuse(options.keys() - Options.__annotations__.keys())
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            no_prox=weight_decouple,
            max_grad_norm=max_grad_norm,
            foreach=foreach,
            fused=fused,
            take_gradients=take_gradients,
            **options,
        )
