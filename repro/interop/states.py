"""Find, measure and replace optimizer states in checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from repro.errors import UserError
from repro.interop.tensors import nbytes, oddity

Place = list[Any]  # keys, outermost first
MALFORMED = (TypeError, LookupError, AttributeError, RuntimeError)  # raised by odd values in a state dict
DEPTH = 3  # one more than the deepest known place, Megatron's optimizer.optimizer


def candidates(content: Any, depth: int = DEPTH) -> Iterator[tuple[str, tuple[Place, dict[str, Any]]]]:
    """Yield the state dicts of optimizers at most `depth` levels down: dotted place, (keys, state dict)."""
    if is_state_dict(content):
        yield "", ([], content)
    elif depth and isinstance(content, (dict, list)):
        for name, value in content.items() if isinstance(content, dict) else enumerate(content):
            for inner, (keys, found) in candidates(value, depth - 1):
                yield f"{name}.{inner}".rstrip("."), ([name, *keys], found)


def is_state_dict(content: Any) -> bool:
    """Return whether `content` has the form of an optimizer's state_dict()."""
    if not isinstance(content, dict) or not {"state", "param_groups"} <= content.keys():
        return False
    state, groups = content["state"], content["param_groups"]
    return (
        isinstance(state, dict)
        and all(isinstance(x, dict) for x in state.values())
        and isinstance(groups, list)
        and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups)
    )


def find(content: Any, key: str | None, path: Path) -> tuple[Place, dict[str, Any]]:
    """Return the place of the optimizer's state dict, and the state dict.

    Raises:
        UserError: there is none, or there are several and no `key` selects one.
    """
    places = dict(candidates(content))
    if key is not None:
        if key not in places:
            raise UserError(f"no optimizer's state dict at {key} in {path}: {_listed(places)}")
        return places[key]
    if len(places) != 1:
        cure = "; say which with --at" if places else ""
        raise UserError(f"{path} has {len(places)} state dicts of optimizers: {_listed(places)}{cure}")
    return next(iter(places.values()))


def _listed(places: dict[str, Any]) -> str:
    return "there is " + (" and ".join(places) or "none (a dict with 'state' and 'param_groups')")


def replaced(content: Any, keys: Place, value: dict[str, Any]) -> Any:
    """Return a copy of `content` with another value at a place; the original stays as it is."""
    if not keys:
        return value
    copied = list(content) if isinstance(content, list) else dict(content)
    copied[keys[0]] = replaced(content[keys[0]], keys[1:], value)
    return copied


def size(state_dict: dict[str, Any]) -> int:
    """Return the bytes of the states."""
    return nbytes(x for state in state_dict["state"].values() for x in _tensors(state))


def elements(state_dict: dict[str, Any]) -> int:
    """Return the elements of the parameters with a state, taken from the largest tensor of each state."""
    states = state_dict["state"].values()
    return sum(max((x.numel() for x in _tensors(state)), default=0) for state in states)


def summary(state_dict: dict[str, Any]) -> str:
    """Return the counts and sizes of a state dict as one line."""
    states = [state for state in state_dict["state"].values() if state]
    tensors = [x for state in states for x in _tensors(state)]
    steps = {int(step) for step in _steps(states, state_dict["param_groups"])}
    shown = f"step {' to '.join(map(str, sorted({min(steps), max(steps)})))}" if steps else "no steps"
    counts = f"{len(states)} parameters with a state, {len(tensors)} tensors"
    return f"{counts}, {size(state_dict):,} bytes, {shown}"


def _tensors(state: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors of a state without step counts; bitsandbytes nests some one level down."""
    for name, value in state.items():
        if isinstance(value, dict):
            yield from _tensors(value)
        elif isinstance(value, Tensor) and name != "step":
            yield value


def _steps(states: list[dict[str, Any]], groups: list[dict[str, Any]]) -> Iterator[float]:
    for holder in (*states, *groups):
        step = holder.get("step")
        if isinstance(step, (int, float)) or (
            isinstance(step, Tensor) and oddity(step) is None and step.numel() == 1
        ):
            yield float(step)
