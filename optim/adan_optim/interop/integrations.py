"""Register our optimizers with frameworks, which are imported only when needed."""

import inspect

from ..registry import OPTIMIZERS


def register_with_timm() -> None:
    """Register every optimizer with timm as "adan-optim.NAME", next to timm's own of the same name.

    Names have "-" instead of "_", before which timm would look for a wrapper. timm passes a momentum
    of 0.9 unasked, so optimizers whose default is another keep their own.

    Example:
        >>> adan_optim.interop.integrations.register_with_timm()
        >>> timm.optim.create_optimizer_v2(model, "adan-optim.adan", lr=1e-3, weight_decay=0.02)

    Raises:
        ImportError: without timm.
    """
    from timm.optim._optim_factory import OptimInfo, default_registry

    known = set(default_registry.list_optimizers("adan-optim.*"))
    for name, cls in OPTIMIZERS.items():
        arguments = inspect.signature(cls).parameters
        info = OptimInfo(
            name=f"adan-optim.{name.replace('_', '-')}",
            opt_class=cls,
            description=f"{cls.card.title}: {cls.card.when}",
            has_eps="eps" in arguments,
            has_momentum="momentum" in arguments and arguments["momentum"].default == 0.9,
            has_betas="betas" in arguments,
            num_betas=cls.card.betas,
        )
        if info.name not in known:
            default_registry.register(info)
