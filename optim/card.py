"""The capability card: the only place where an optimizer says what it supports.

The tables in the README and the docs, the error messages, `optim.available()` and the parametrisation of
the tests are made from the cards.
"""

from dataclasses import dataclass, field

import torch

PATHS = ("fused", "foreach", "reference")  # fastest first: the order in which they are tried

# What every optimizer of this package accepts besides its own hyper-parameters.
COMMON_OPTIONS = {
    "maximize": "ascend instead of descend",
    "max_grad_norm": "clip the global norm of all gradients to this value; 0 is off",
    "nonfinite": "'propagate', 'skip' (leave this step out) or 'raise' when a gradient is inf or NaN",
    "foreach": "True asks for the foreach path, False rules it out",
    "fused": "True asks for the fused path, False rules it out",
}


@dataclass(frozen=True)
class Card:
    """What one optimizer is and supports.

    Attributes:
        name: registry name, as in `optim.build_optimizer(model, name)`.
        title: the name people use.
        source: paper and equation, or file.
        when: when to use it, in a line.
        states: state tensors, each of the parameter's shape and dtype, with the paper's symbol. In the
            order in which the fused rule takes them.
        betas: number of decay factors.
        options: hyper-parameters of a parameter group, besides lr, betas, eps and weight_decay.
        paths: update paths, fastest first.
        fused_devices: device types with a fused kernel.
        dtypes: parameter dtypes. Arithmetic is in float32, and in float64 for float64 parameters.
    """

    name: str
    title: str
    source: str
    when: str
    states: dict[str, str]
    betas: int
    options: dict[str, str] = field(default_factory=dict)
    paths: tuple[str, ...] = PATHS
    fused_devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

    def state_bytes(self, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of state per parameter of this dtype."""
        return len(self.states) * dtype.itemsize

    def traffic_bytes(self, dtype: torch.dtype = torch.float32) -> int:
        """Bytes per parameter of a one-pass step: p, g and the states read, p and the states written."""
        return (3 + 2 * len(self.states)) * dtype.itemsize
