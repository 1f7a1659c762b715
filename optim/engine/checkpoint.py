"""Loading a state dict: adopting those of other versions and implementations, and checking them."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..card import Card
from ..interop.sources import SOURCES, STATE_NAMES, refuse_options
from .checks import OPTIMIZER_WIDE, check_hyper, in_group
from .rule import Group, UpdateRule
from .storage import BLOCK, STORAGE_OPTIONS, State, StateSpec, Storage

ANOTHER_MODEL = "a checkpoint of another model, or of its parameters in another order"


def adopt(optimizer: UpdateRule, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict as the optimizer would have saved it, checked; the given one is not changed.

    Raises:
        ValueError, TypeError: for a state or an option that does not fit the optimizer.
    """
    groups = [dict(group) for group in state_dict["param_groups"]]
    states = dict(state_dict["state"])
    # torch says it if their numbers do not match
    for number, (saved, group) in enumerate(zip(groups, optimizer.param_groups, strict=False)):
        if "weight_decouple" in saved:  # pytorch_optimizer's name
            saved.setdefault("decoupled_weight_decay", saved["weight_decouple"])
        refuse_options(saved, known=optimizer.defaults, decoupled=optimizer.decoupled)
        saved.pop("decoupled_weight_decay", None)
        group_step = saved.pop("step", None)  # the official Adan counts steps per group
        for name in saved.keys() & {*OPTIMIZER_WIDE, "differentiable"}:
            del saved[name]
        saved |= {name: group[name] for name in STORAGE_OPTIONS}
        for name, value in optimizer.defaults.items():
            saved.setdefault(name, value)
        for index, p in zip(saved["params"], group["params"], strict=False):
            if state := dict(states.get(index, {})):
                states[index] = state
                if group_step is not None:
                    state.setdefault("step", group_step)
                optimizer.load_foreign_state(state)
                if own := _own_and_foreign(state)[0]:
                    _check_state(optimizer, f"parameter {index}", p, own, optimizer.state_spec(p, saved))
                    state["step"] = torch.tensor(float(state["step"]), dtype=torch.float32)
        with in_group(optimizer, number):
            check_hyper(optimizer, saved, optimizer.defaults)
            optimizer.check_options({**saved, "params": group["params"]})
    return {**state_dict, "state": states, "param_groups": groups}


def copy_state(optimizer: UpdateRule, p: Tensor, state: dict[str, Any], group: Group) -> dict[str, Any]:
    """A checked state in memory of its own: ours as the options say, entries of others as they are."""
    own, foreign = _own_and_foreign(state)
    if own:
        storage = Storage.of(p, group, optimizer.take_gradients)
        own = storage.copy(optimizer.card, optimizer.state_spec(p, group), p, own)
    copied: dict[str, Any] = tree_map(lambda x: _copied(x, p.device), foreign)
    return own | copied


def _check_state(optimizer: UpdateRule, name: str, p: Tensor, state: dict[str, Any], spec: StateSpec) -> None:
    optimizer.check_saved_state(name, p, state, spec)
    previous, small = optimizer.card.previous, dict(spec.small)
    required = {"step", *spec.full, *small}
    if "pre_grad" in state and previous:
        required = required - {previous} | {"pre_grad"}
    scales = {f"{key}_scale" for key in required}
    if not required <= state.keys() <= required | scales | {"compensation"}:
        problem = f"the state of {name} is {sorted(state)}, expected {sorted(required)}"
        if _is_of_another_parameter(optimizer, p, state):
            raise ValueError(f"{ANOTHER_MODEL}: {problem} for shape {tuple(p.shape)}")
        converts = any(source.optimizer == optimizer.card.name for source in SOURCES.values())
        raise ValueError(
            f"not a checkpoint of {optimizer.card.title}: {problem}"
            + "; optim.convert_state reads those of others" * converts
        )
    for key in spec.full:
        if key in state and (state[key].dtype == torch.uint8) != (f"{key}_scale" in state):
            raise ValueError(
                f"not a checkpoint of {optimizer.card.title}: {key} of {name} is {state[key].dtype}, and "
                f"8-bit codes go with {key}_scale; one of the two is missing or was cast"
            )
    blocks = torch.Size([-(-p.numel() // BLOCK)])
    for key in sorted(state.keys() - {"step", "pre_grad_scale"}):
        shape = torch.Size(small[key]) if key in small else blocks if key in scales else p.shape
        if state[key].shape != shape:
            raise ValueError(
                f"{ANOTHER_MODEL}: {key} of {name} has shape {tuple(state[key].shape)}, "
                f"expected {tuple(shape)} for a parameter of shape {tuple(p.shape)}"
            )


def _is_of_another_parameter(optimizer: UpdateRule, p: Tensor, state: State) -> bool:
    """Whether a state that is not p's would be right for a parameter of another shape in p's group."""
    keys = {key for key in state if not key.endswith("_scale")} - {"compensation"}
    [group] = [group for group in optimizer.param_groups if any(q is p for q in group["params"])]
    others = {optimizer.state_spec(q, group) for q in group["params"]} - {optimizer.state_spec(p, group)}
    return any({"step", *spec.full, *dict(spec.small)} == keys for spec in others)


def _own_and_foreign(state: dict[Any, Any]) -> tuple[State, dict[Any, Any]]:
    """A parameter's state in two: names that optimizers are known to use, and what others keep there."""
    known = STATE_NAMES.union(*((*card.states, *card.small) for card in _cards(UpdateRule)))
    own = {key for key in state if isinstance(key, str) and key.removesuffix("_scale") in known}
    return {k: state[k] for k in state if k in own}, {k: state[k] for k in state if k not in own}


def _cards(cls: type[UpdateRule]) -> Iterator[Card]:
    for subclass in cls.__subclasses__():
        if hasattr(subclass, "card"):
            yield subclass.card
        yield from _cards(subclass)


def _copied(x: Any, device: torch.device) -> Any:
    return x.detach().to(device, copy=True) if isinstance(x, Tensor) else copy.deepcopy(x)
