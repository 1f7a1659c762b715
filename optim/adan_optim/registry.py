"""Optimizers by name: built from a model and a config, and listed with what works on this machine."""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .adafactor import Adafactor
from .adam import Adam
from .adam_mini import AdamMini
from .adamw import AdamW
from .adan import Adan
from .ademamix import AdEMAMix
from .base import Optimizer
from .card import Card
from .engine import cuda, native
from .engine.checks import known_options
from .groups import param_groups
from .interop import official
from .lamb import Lamb
from .lars import Lars
from .lion import Lion
from .mars import Mars
from .muon import Muon
from .nadamw import NAdamW
from .prodigy import Prodigy, ProdigyAdan
from .schedule_free_adamw import ScheduleFreeAdamW
from .schedule_free_adan import ScheduleFreeAdan
from .shampoo import Shampoo
from .soap import Soap
from .sophia import Sophia
from .text import aligned

OPTIMIZERS: dict[str, type[Optimizer]] = {
    cls.card.name: cls
    for cls in (
        *(Adan, AdamW, Adam, NAdamW, AdEMAMix, Mars, AdamMini, Adafactor, Lamb, Lars, Lion, Sophia),
        *(ScheduleFreeAdamW, ScheduleFreeAdan, Prodigy, ProdigyAdan, Shampoo, Muon, Soap),
    )
}
# Further names of the command line, with the optimizer that each is, and its options.
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "adam8bit": ("adam", {"state_dtype": "int8"}),
    "adamw8bit": ("adamw", {"state_dtype": "int8"}),
    "adabelief": ("timm.optim.AdaBelief", {}),
    "apex_fused_adam": ("apex.optimizers.FusedAdam", {}),
    "apex_fused_lamb": ("apex.optimizers.FusedLAMB", {}),
}
CARDS: dict[str, Card] = {name: cls.card for name, cls in OPTIMIZERS.items()}


def build_optimizer(
    model_or_params: nn.Module | Iterable[Any],
    name_or_config: str | Mapping[str, Any],
    *,
    decay_bias_and_norm: bool = False,
    layer_decay: float | None = None,
    lr_scales: Mapping[str, float] | None = None,
    embedding_state_dtype: str | None = None,
    **options: Any,
) -> torch.optim.Optimizer:
    """Build an optimizer; the parameters of a model are put into groups.

    Args:
        model_or_params: a module, to group its trainable parameters with `adan_optim.groups.param_groups` (no
            weight decay on biases and norms), or parameters or groups as for any torch optimizer.
        name_or_config: a name of the command line, that is, one in `OPTIMIZERS` or `ALIASES`, or the name of
            an optimizer in torch.optim ("sgd"); the import path of any other ("timm.optim.Lamb"); or a
            mapping with such a "name" and options. Defaults are those of the class.
        decay_bias_and_norm, layer_decay, lr_scales, embedding_state_dtype: see `adan_optim.param_groups`;
            they need a model.
        options: arguments of the optimizer; they override those in the mapping.

    Raises:
        ValueError, TypeError: for an unknown name, an option that the optimizer does not have, an invalid
            value, or no parameters.

    Example:
        >>> build_optimizer(nn.Linear(2, 2), {"name": "adan", "lr": 0.01, "weight_decay": 0.02}).path
        'fused (CPU, AVX2)'
    """
    grouping: dict[str, Any] = dict(
        decay_bias_and_norm=decay_bias_and_norm,
        layer_decay=layer_decay,
        lr_scales=lr_scales,
        embedding_state_dtype=embedding_state_dtype,
    )
    if isinstance(name_or_config, Mapping):
        config = {**grouping, **name_or_config, **options}
        if not isinstance(config.get("name"), str):
            raise ValueError(f"no optimizer name in {dict(name_or_config)}: use {', '.join(OPTIMIZERS)}")
        return build_optimizer(model_or_params, config.pop("name"), **config)
    cls, preset = resolve(name_or_config)
    options = preset | options
    accepted = inspect.signature(cls).parameters
    known_options(cls.__name__, options, list(accepted)[1:])
    if isinstance(model_or_params, nn.Module):
        if embedding_state_dtype is not None and "state_dtype" not in accepted:
            raise TypeError(f"{cls.__name__} has no option 'state_dtype', for embeddings or others")
        given = {name: option.default for name, option in accepted.items()} | options
        lr, decay = given.get("lr", 0.0), given.get("weight_decay", 0.0)
        groups = param_groups(model_or_params, lr, decay, **grouping)
        if issubclass(cls, Optimizer):
            return cls.of_model(model_or_params, groups, **options)
        return cls(groups, **options)
    if any(value not in (None, False) for value in grouping.values()):
        raise ValueError(f"{', '.join(grouping)} need the model, not its parameters")
    params = list(model_or_params)
    if not params:
        raise ValueError("there are no parameters to optimize")
    return cls(params, **options)


def find(name: str) -> type[torch.optim.Optimizer]:
    """Return the class for a name or an import path; see `resolve`."""
    return resolve(name)[0]


def resolve(name: object) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Return the class for a name or an import path, and the options that the name stands for.

    Args:
        name: one in `OPTIMIZERS`, in `ALIASES`, or of a class in torch.optim, in upper or lower case, with or
            without "-", "_" and spaces; ours come first. Or an import path.

    Raises:
        TypeError: if it is no string.
        ValueError: if there is no such optimizer, with the nearest name, or it cannot be imported.
    """
    if not isinstance(name, str):
        raise TypeError(f"an optimizer's name is a string such as 'adan', not a {type(name).__name__}")
    torchs = {
        key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and key != "Optimizer"
    }
    classes = {_plain(key): value for key, value in {**torchs, **OPTIMIZERS}.items()}
    aliases = {_plain(key): value for key, value in ALIASES.items()}
    if (plain := _plain(name)) in classes:
        return classes[plain], {}
    if plain in aliases:
        path, options = aliases[plain]
        return resolve(path)[0], options
    if "." in name:
        return _imported(name), {}
    names = dict.fromkeys([*OPTIMIZERS, *ALIASES, *sorted(map(str.lower, torchs))])
    near = difflib.get_close_matches(name.lower(), names, n=1)
    others = f"there are {', '.join(names)}, and import paths like timm.optim.Lamb"
    raise ValueError(f"unknown optimizer {name!r}: {f'did you mean {near[0]!r}?' if near else others}")


def _plain(name: str) -> str:
    return re.sub("[-_ ]", "", name.lower())


def _imported(name: str) -> type[torch.optim.Optimizer]:
    module, _, attribute = name.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"unknown optimizer {name!r}: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise ValueError(f"{name!r} is not a torch.optim.Optimizer")
    return cls


def path_in_use(optimizer: torch.optim.Optimizer) -> str:
    """Return the update path of an optimizer in words; for torch's own, its class and flag."""
    if isinstance(optimizer, Optimizer):
        return optimizer.path
    flags = [f" ({flag})" for flag in ("fused", "foreach") if optimizer.param_groups[0].get(flag)]
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}{''.join(flags[:1])}"


def available() -> None:
    """Print which optimizers and paths work on this machine, and why the others do not."""
    library, _ = native.load()
    rows = [("optimizer", "path", "device", "available")]
    for name, card in CARDS.items():
        for device in card.fused_devices:
            reason = cuda.why_not() if device == "cuda" else native.why_not(card.fused_rules)
            threads = "" if library is None or library.threads == "OpenMP" else f", {library.threads}"
            detail = (
                f"{library.instruction_set}{threads}" if device == "cpu" and library else cuda.why_not_kept()
            )
            rows.append((name, "fused", device.upper(), reason or (f"yes ({detail})" if detail else "yes")))
        rows += [(name, path, "any", "yes") for path in card.paths if path != "fused"]
    print("\n".join(aligned(rows)))
    print("Tensors on MPS, XPU or ROCm take the path foreach: the fused kernels are for CPUs and CUDA.")
    for module in official.DISTRIBUTIONS:
        if found := official.conflict(module):
            print(found)
