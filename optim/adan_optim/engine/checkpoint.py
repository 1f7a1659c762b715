"""Loading a state dict: adapting those of other versions and implementations, and checking them."""

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..interop.sources import SOURCES, STATE_NAMES, refuse_options
from .checks import OPTIMIZER_WIDE, check_hyper, in_group
from .contract import check_state
from .dtensor import is_dtensor, with_dtype
from .rule import Group, UpdateRule
from .storage import REST_NAMES, STORAGE_OPTIONS, State, StateSpec, Storage

ANOTHER_MODEL = (
    "a checkpoint of another model, or of its groups or parameters in another order, or a damaged one"
)
SHOWN = 4  # keys in a message, of hundreds


def gatherable(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict whose DTensors can be gathered, as `full_state_dict=True` does it.

    Neither NCCL nor gloo sends int16: remainders that are DTensors become bfloat16 with the same bits.
    """

    def sendable(state: dict[str, Any]) -> dict[str, Any]:
        x: Any = state.get("remainder")
        return {**state, "remainder": with_dtype(x, torch.bfloat16)} if is_dtensor(x) else state

    states = {index: sendable(state) for index, state in state_dict["state"].items()}
    return {**state_dict, "state": states}


def adopt(optimizer: UpdateRule, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a checked state dict, in our own format; the given one is not changed.

    Raises:
        ValueError, TypeError: for a state or an option that does not fit the optimizer.
    """
    _check_keys(state_dict)
    groups = [dict(group) for group in state_dict["param_groups"]]
    states = dict(state_dict["state"])
    for saved in groups:
        if any(isinstance(index, str) for index in saved["params"]):
            # torch.distributed.checkpoint matched parameters by name, but left these in the saved order
            saved.pop("param_names", None)
    _check_groups(optimizer, groups)
    for number, (saved, group) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        if "weight_decouple" in saved:  # pytorch_optimizer's name
            saved.setdefault("decoupled_weight_decay", saved["weight_decouple"])
        refuse_options(saved, known=optimizer.defaults, decoupled=optimizer.decoupled)
        optimizer.check_saved_group(saved)
        saved.pop("decoupled_weight_decay", None)
        group_step = saved.pop("step", None)  # the official Adan counts steps per group
        for name in saved.keys() & {*OPTIMIZER_WIDE, "differentiable"}:
            del saved[name]
        saved |= {name: group[name] for name in STORAGE_OPTIONS}
        for name, value in optimizer.defaults.items():
            saved.setdefault(name, value)
        for index, p in zip(saved["params"], group["params"], strict=True):
            if state := dict(states.get(index, {})):
                states[index] = state
                if group_step is not None:
                    state.setdefault("step", group_step)
                optimizer.load_foreign_state(state)
                if getattr(state.get("remainder"), "dtype", None) == torch.bfloat16:  # see `gatherable`
                    state["remainder"] = with_dtype(state["remainder"], torch.int16)
                if own := _own_and_foreign(state)[0]:
                    _check_state(optimizer, f"parameter {index}", p, own, optimizer.state_spec(p, saved))
                    state["step"] = torch.tensor(float(state["step"]), dtype=torch.float32)
        with in_group(optimizer, number):
            check_hyper(optimizer, saved, optimizer.defaults)
            optimizer.check_options({**saved, "params": group["params"]})
    return {**state_dict, "state": states, "param_groups": groups}


def _check_keys(given: dict[str, Any]) -> None:
    if not given.keys() >= {"state", "param_groups"}:
        inner = [key for key, value in given.items() if isinstance(value, dict) and "param_groups" in value]
        cure = f"load the entry {inner[0]!r}" if inner else "give what optimizer.state_dict() returned"
        keys = ", ".join(repr(key) for key in islice(given, SHOWN)) + ", ..." * (len(given) > SHOWN)
        raise ValueError(f"not an optimizer's state dict, but one with the keys {keys}: {cure}")


def _check_groups(optimizer: UpdateRule, saved: list[Group]) -> None:
    """Refuse groups that are not the optimizer's: torch matches groups and parameters by position alone.

    What tells are the sizes, and the names of groups and of parameters where both sides have them.
    """
    title, groups = optimizer.card.title, optimizer.param_groups
    for what, key in (("groups", "name"), ("parameters", "param_names")):
        there, here = (_names(each, key) for each in (saved, groups))
        if there != here and sorted(there) == sorted(here):
            i = next(i for i, pair in enumerate(zip(there, here, strict=True)) if pair[0] != pair[1])
            raise ValueError(
                f"{title}: the {what} of the checkpoint are in another order: number {i} is {there[i]!r} "
                f"there and {here[i]!r} here; keep the order, or change the state dict by "
                "register_load_state_dict_pre_hook"
            )
    sizes, ours = ([len(group["params"]) for group in each] for each in (saved, groups))
    if sizes != ours:
        order = ", in another order" if sorted(sizes) == sorted(ours) else ""
        raise ValueError(
            f"{title}: the checkpoint has parameter groups of sizes {sizes}, the optimizer {ours}{order}; "
            "build it as the saved one was, both by adan_optim.build_optimizer(model, ...) or both from "
            "model.parameters()"
        )


def _names(groups: list[Group], key: str) -> list[str]:
    """All names under a key of the groups, one or a list in each; [] if a group has none."""
    found = [group.get(key) or () for group in groups]
    names = [str(name) for each in found for name in ([each] if isinstance(each, str) else each)]
    return names if all(found) else []


def copy_state(optimizer: UpdateRule, p: Tensor, state: dict[str, Any], group: Group) -> dict[str, Any]:
    """Return a copy of a checked state of p, which has any shape; entries of other code stay unchanged."""
    own, foreign = _own_and_foreign(state)
    if own:
        storage = Storage.of(p, group, optimizer.take_gradients)
        own = storage.copy(optimizer.card, optimizer.state_spec(p, group), p, own)

    def copied(x: Any) -> Any:
        return x.detach().to(p.device, copy=True) if isinstance(x, Tensor) else copy.deepcopy(x)

    return {**own, **tree_map(copied, foreign)}


def _check_state(optimizer: UpdateRule, name: str, p: Tensor, state: dict[str, Any], spec: StateSpec) -> None:
    optimizer.check_saved_state(name, p, state, spec)
    previous, small = optimizer.card.previous, dict(spec.small)
    required = {"step", *spec.full, *small}
    if "pre_grad" in state and previous:
        required = required - {previous} | {"pre_grad"}
    scales = {f"{key}_scale" for key in required}
    if not required <= state.keys() <= required | scales | REST_NAMES:
        problem = f"the state of {name} is {sorted(state)}, expected {sorted(required)}"
        if _is_of_another_parameter(optimizer, p, state):
            raise ValueError(f"{ANOTHER_MODEL}: {problem} for shape {tuple(p.shape)}")
        converts = any(source.optimizer == optimizer.card.name for source in SOURCES.values())
        raise ValueError(
            f"not a checkpoint of {optimizer.card.title}: {problem}"
            + "; adan_optim.convert_state reads those of other implementations" * converts
        )
    try:
        check_state(name, optimizer.card, spec, p, {**state, "step": 0})
    except RuntimeError as error:
        raise ValueError(f"{ANOTHER_MODEL}: {error}") from None


def _is_of_another_parameter(optimizer: UpdateRule, p: Tensor, state: State) -> bool:
    """Whether a state that does not fit p would fit a parameter of another shape in p's group."""
    keys = {key for key in state if not key.endswith("_scale")} - REST_NAMES
    [group] = [group for group in optimizer.param_groups if any(q is p for q in group["params"])]
    others = {optimizer.state_spec(q, group) for q in group["params"]} - {optimizer.state_spec(p, group)}
    return any({"step", *spec.full, *dict(spec.small)} == keys for spec in others)


def _own_and_foreign(state: dict[Any, Any]) -> tuple[State, dict[Any, Any]]:
    """Split a parameter's state: entries with names that optimizers use, and entries of other code."""
    known = STATE_NAMES.union(*_card_states(UpdateRule))
    own = {key for key in state if isinstance(key, str) and key.removesuffix("_scale") in known}
    return {k: state[k] for k in state if k in own}, {k: state[k] for k in state if k not in own}


def _card_states(cls: type[UpdateRule]) -> Iterator[tuple[str, ...]]:
    for subclass in cls.__subclasses__():
        if hasattr(subclass, "card"):
            yield *subclass.card.states, *subclass.card.small
        yield from _card_states(subclass)
