"""Our optimizers under the names by which frameworks choose one; frameworks are imported only when named."""

import inspect
from dataclasses import field, make_dataclass
from typing import Any

from ..engine.checks import one_of
from ..registry import OPTIMIZERS, resolve
from ..warn import warn


def register(framework: str) -> None:
    """Register every optimizer with a framework; a second time does nothing.

    * "timm": as "adan-optim.NAME", with "-" instead of "_", before which timm looks for a wrapper. timm
      passes a momentum of 0.9 unasked, so optimizers whose default is another keep their own.
    * "mmengine" (MMPretrain, OpenMixup): as "AdanOptimClass": `optimizer=dict(type="AdanOptimAdan", ...)`.
    * "nemo": as "adan_optim_NAME", with a config of the arguments, for `optim.name: adan_optim_adan`.

    Example:
        >>> adan_optim.interop.integrations.register("timm")
        >>> timm.optim.create_optimizer_v2(model, "adan-optim.adan", lr=1e-3, weight_decay=0.02)

    Raises:
        ValueError: for another framework.
        ImportError: if it is not installed.
    """
    one_of("framework", framework, tuple(_REGISTER))
    _REGISTER[framework]()


def trainer_arguments(arguments: Any, name: str = "adan", **options: Any) -> tuple[type, dict[str, Any]]:
    """Return an optimizer for Hugging Face's Trainer with the settings of its `TrainingArguments`.

    The learning rate and weight decay are `learning_rate` and `weight_decay`. The betas and eps are
    `adam_beta1`, `adam_beta2` and `adam_epsilon`, if they were changed from the Trainer's defaults; otherwise
    they are the optimizer's own. Adan has three betas, of which two of Adam's say nothing: it keeps its own.

    Example:
        >>> Trainer(model, arguments, optimizer_cls_and_kwargs=trainer_arguments(arguments, "adan"))

    Args:
        arguments: `transformers.TrainingArguments`.
        name: a name or an import path, as for `adan_optim.build_optimizer`.
        options: for the optimizer; they override what `arguments` says.

    Warns:
        UserWarning: a setting was changed that the optimizer has no use for, such as the betas with Adan.
    """
    cls, preset = resolve(name)
    accepted = inspect.signature(cls).parameters
    given: dict[str, Any] = {"lr": arguments.learning_rate, "weight_decay": arguments.weight_decay}
    own = accepted["betas"].default if "betas" in accepted else None
    betas, eps = _changed(arguments, "adam_beta1", "adam_beta2"), _changed(arguments, "adam_epsilon")
    if betas and isinstance(own, tuple) and len(own) == 2:
        given["betas"] = tuple(betas.values())
    elif betas and "betas" not in options:
        instead = f"it keeps betas={own}; pass betas= to change them" if own else "it has none"
        _ignored(cls, betas, f"Adam's two betas are not its own: {instead}")
    if eps and "eps" in accepted:
        given["eps"] = eps["adam_epsilon"]
    elif eps:
        _ignored(cls, eps, "it has no eps")
    return cls, {key: value for key, value in given.items() if key in accepted} | preset | options


def _changed(arguments: Any, *names: str) -> dict[str, Any]:
    """Return these of the TrainingArguments, if one of them is not the default."""
    known = inspect.signature(type(arguments)).parameters
    found = {name: getattr(arguments, name) for name in names}
    return found if any(value != known[name].default for name, value in found.items()) else {}


def _ignored(cls: type, settings: dict[str, Any], why: str) -> None:
    words = ", ".join(f"{name}={value}" for name, value in settings.items())
    warn(f"trainer_arguments: {cls.__name__} ignores {words}: {why}")


def _register_with_timm() -> None:
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


def _register_with_mmengine() -> None:
    from mmengine.registry import OPTIMIZERS as REGISTRY

    for cls in OPTIMIZERS.values():
        name = f"AdanOptim{cls.__name__}"
        if name not in REGISTRY:
            REGISTRY.register_module(name=name, module=cls)


def _register_with_nemo() -> None:
    from nemo.core.config import OptimizerParams
    from nemo.core.optim import optimizers as registry

    for key, cls in OPTIMIZERS.items():
        name = f"adan_optim_{key}"
        if name in registry.AVAILABLE_OPTIMIZERS:
            continue
        accepted = list(inspect.signature(cls).parameters.values())[1:]
        fields = [
            (item.name, Any, _default(item.default)) for item in accepted if item.kind != item.VAR_KEYWORD
        ]
        config = make_dataclass(f"{cls.__name__}Params", fields, bases=(OptimizerParams,))
        registry.register_optimizer(name, cls, config)


def _default(value: Any) -> Any:
    return field(default_factory=lambda: value)  # some are lists


_REGISTER = {"timm": _register_with_timm, "mmengine": _register_with_mmengine, "nemo": _register_with_nemo}
