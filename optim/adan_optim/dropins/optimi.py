"""Drop-in for `optimi.Adan` (torch-optimi 0.3.3): `from adan_optim.dropins.optimi import Adan`."""

from collections.abc import Sequence

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ..adan import Adan as Core
from ..base import Options

__all__ = ["Adan"]


class Adan(Core):
    """`adan_optim.Adan` with the arguments of optimi.

    Args:
        params, lr, betas, weight_decay, eps: see `adan_optim.Adan`.
        decouple_lr: a step decays by weight_decay lr / max_lr instead of weight_decay lr: not more for a
            larger learning rate.
        max_lr: the learning rate at which a step decays by weight_decay; None is lr.
        adam_wd: decoupled weight decay instead of the proximal one; `no_prox` of `adan_optim.Adan`.
        kahan_sum: keep the rounding errors of bfloat16 parameters, `param_rounding="kahan"`; so does None.
        foreach: see `adan_optim.Adan`.
        triton: `fused` of `adan_optim.Adan`.
        gradient_release: must be False; `adan_optim.step_in_backward` does it for every optimizer.
        max_grad_norm, take_gradients, options: see `adan_optim.Adan`.

    Raises:
        TypeError: for an unknown option, gradient_release=True, and a max_lr without decouple_lr.
        ValueError: for what the base class refuses.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        betas: Sequence[float] = (0.98, 0.92, 0.99),
        weight_decay: float = 0.02,
        eps: float = 1e-6,
        decouple_lr: bool = False,
        max_lr: float | None = None,
        adam_wd: bool = False,
        kahan_sum: bool | None = False,
        foreach: bool | None = None,
        triton: bool | None = None,
        gradient_release: bool = False,
        *,
        max_grad_norm: float = 0.0,
        take_gradients: bool = False,
        **options: Unpack[Options],
    ) -> None:
        self._refuse(options.keys() - Options.__annotations__.keys())
        if gradient_release:
            raise TypeError("gradient_release=True: use adan_optim.step_in_backward(model, optimizer)")
        if max_lr is not None and not decouple_lr:
            raise TypeError(f"max_lr={max_lr}: it has no effect without decouple_lr=True")
        if decouple_lr:
            weight_decay /= float(lr if max_lr is None else max_lr)
        if kahan_sum is not False:
            options.setdefault("param_rounding", "kahan")
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            max_grad_norm,
            no_prox=adam_wd,
            foreach=foreach,
            fused=triton,
            take_gradients=take_gradients,
            **options,
        )
