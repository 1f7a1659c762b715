"""Convert states of other implementations into ours, and those of one optimizer into another's.

`convert_state` reads a state dict through its `Source` (sources.py). For another optimizer, a function in
ROUTES converts the states. What has no meaning there is an error, never a guess.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..engine import storage
from ..engine.checks import located, one_of
from .advice import adan_from_adamw
from .sources import (
    BOOKKEEPING,
    LEARNING_RATES,
    OWN_OPTIONS,
    SOURCES,
    Saved,
    adan_state,
    parts,
    recognise,
    refuse_options,
    wide,
)

# From a state, its group before and after, and the number of blocks to the new state.
Route = Callable[[Saved, Saved, Saved, int | None], Saved]


def _stay(state: Saved, old: Saved, new: Saved, blocks: int | None) -> Saved:
    return state


def _adamw_to_adan(state: Saved, old: Saved, new: Saved, blocks: int | None) -> Saved:
    """Adan's moments as they would be on average if the gradients were a constant plus independent noise.

    With bias-corrected means a of g and s of g^2, the variance of the noise is (s - a^2) / (1 - k), where k
    is the sum of the squared weights of the gradients in a; the mean of (g + b2 diff)^2 is
    s + 2 b2 (1 + b2) variance. The mean of the differences is zero, and a takes the place of the previous
    gradient. After a single step all of this is exact. All tensors have the parameter's shape.
    """
    t = int(state["step"])
    b1, b2, b3 = new["betas"]
    old1, old2 = old["betas"]
    if t == 0:
        a = s = variance = torch.zeros_like(wide(state["exp_avg"]))
    else:
        a = wide(state["exp_avg"]) / (1 - old1**t)
        s = wide(state["exp_avg_sq"]) / (1 - old2**t)
        k = (1 - old1) / (1 + old1) * (1 + old1**t) / (1 - old1**t)
        variance = (s - a.square()).clamp(min=0) / (1 - k) if t > 1 else torch.zeros_like(s)
    n = s + 2 * b2 * (1 + b2) * variance
    return adan_state(state["step"], a * (1 - b1**t), torch.zeros_like(a), n * (1 - b3**t), -a)


def _adamw_to_adam_mini(state: Saved, old: Saved, new: Saved, blocks: int | None) -> Saved:
    """Average the second moment over each block: exact. It becomes [blocks]."""
    v = wide(state["exp_avg_sq"])
    if blocks is None:
        raise ValueError("give its number of blocks in Adam-mini with blocks=")
    if blocks < 1 or v.numel() % blocks:
        raise ValueError(f"blocks={blocks} does not divide its {v.numel()} elements")
    mean = v.reshape(blocks, -1).mean(1)
    return dict(step=state["step"], exp_avg=state["exp_avg"], exp_avg_sq=mean)


def _adam_mini_to_adamw(state: Saved, old: Saved, new: Saved, blocks: int | None) -> Saved:
    """Give each element the second moment of its block: [blocks] becomes the parameter's shape."""
    m, v = state["exp_avg"], state["exp_avg_sq"]
    each = v.repeat_interleave(m.numel() // max(v.numel(), 1)).reshape(m.shape)
    return dict(step=state["step"], exp_avg=m, exp_avg_sq=each)


def _adamw_to_ademamix(state: Saved, old: Saved, new: Saved, blocks: int | None) -> Saved:
    """The slow mean begins at zero, as in a run that begins here."""
    return {**state, "exp_avg_slow": torch.zeros_like(state["exp_avg"])}


def _ademamix_to_adamw(state: Saved, old: Saved, new: Saved, blocks: int | None) -> Saved:
    return {name: x for name, x in state.items() if name != "exp_avg_slow"}


ROUTES: dict[tuple[str, str], Route] = {
    **{(name, name): _stay for name in ("adan", "adamw", "nadamw", "ademamix", "adam_mini")},
    ("adamw", "nadamw"): _stay,
    ("nadamw", "adamw"): _stay,
    ("adamw", "ademamix"): _adamw_to_ademamix,
    ("ademamix", "adamw"): _ademamix_to_adamw,
    ("adamw", "adan"): _adamw_to_adan,
    ("adamw", "adam_mini"): _adamw_to_adam_mini,
    ("adam_mini", "adamw"): _adam_mini_to_adamw,
}
TARGETS = tuple(dict.fromkeys(target for _, target in ROUTES))


def convert_state(
    state_dict: Mapping[str, Any],
    source: str | None = None,
    target: str = "adan",
    *,
    blocks: Mapping[Any, int] | Sequence[int] | None = None,
    shapes: Mapping[Any, Sequence[int]] | Sequence[Sequence[int]] | None = None,
    regime: str = "pretrain",
) -> dict[str, Any]:
    """Convert the state dict of another optimizer into one that our `load_state_dict` accepts.

    Groups, the order of parameters and step counts are kept. Options that a checkpoint lacks (clipping;
    pytorch_optimizer's `maximize`) must be given to the constructor.

    Between implementations of one optimizer, training continues with the source's own steps. Across
    optimizers:

    * AdamW to Adan: the moments are Adan's on average (see `_adamw_to_adan`); the groups get the settings of
      `adan_optim.adan_from_adamw`.
    * AdamW to NAdamW and back: exact, the states are the same.
    * AdamW to AdEMAMix and back: the slow mean begins at zero, or is dropped.
    * AdamW to Adam-mini: exact, the block means of the second moment.
    * Adam-mini to AdamW: each element starts with the second moment of its block.

    Args:
        state_dict: the result of the other optimizer's `state_dict()`. It is not changed, but the result
            shares tensors that need no conversion.
        source: a key of `adan_optim.interop.sources.SOURCES`; None recognises the source by its keys.
        target: "adan", "adamw", "nadamw", "ademamix" or "adam_mini".
        blocks: from AdamW to "adam_mini": the number of blocks of each parameter, in the order of the
            parameters, or by index in the state dict or by name.
        shapes: from "adam_mini_official": the shapes of the parameters that it stores by heads, given in the
            same way.
        regime: from AdamW to Adan: see `adan_optim.adan_from_adamw`.

    Raises:
        ValueError: for a state dict of an unknown or ambiguous source, for an option that changes the
            source's steps and that ours lack, or if no conversion between the two optimizers is defined.
    """
    if source is not None:
        one_of("source", source, tuple(SOURCES))
    one_of("target", target, TARGETS)
    states, groups = parts(state_dict)
    read = SOURCES[source or recognise(state_dict)]
    route = ROUTES.get((read.optimizer, target))
    if route is None:
        raise ValueError(
            f"from {read.optimizer} to {target} no conversion is defined: the moments are of different "
            f"quantities; start {target} without a state"
        )
    new_states, new_groups, position = {}, [], 0
    for number, group in enumerate(groups):
        with located(f"parameter group {number}"):
            refuse_options(group, known=("caution",) if "state_dtype" in group else ())
            old = read.group(group, source is not None)
            new, kept = old, {key: group[key] for key in group.keys() & BOOKKEEPING}
            if read.optimizer != target:
                new = {key: value for key, value in old.items() if key not in OWN_OPTIONS}
                if "ademamix" in (read.optimizer, target):
                    new["betas"] = (
                        (*old["betas"], 0.9999) if target == "ademamix" else tuple(old["betas"])[:2]
                    )
            if (read.optimizer, target) == ("adamw", "adan"):
                advised = adan_from_adamw(lr=old["lr"], weight_decay=old["weight_decay"], regime=regime)
                new = {**old, **advised.options}
                for key in kept.keys() & LEARNING_RATES:  # a scheduler's, scaled like the group's
                    kept[key] = adan_from_adamw(lr=kept[key], regime=regime).options["lr"]
        names = group.get("param_names") or [group.get("name")] * len(group["params"])
        for index, called in zip(group["params"], names, strict=True):
            if index in states:
                with located(f"parameter {index}"):
                    state = read.ours(states[index], group, _lookup(shapes, index, position, called))
                    rest = {key: state[key] for key in state.keys() & storage.REST_NAMES}  # of the parameter
                    count = _lookup(blocks, index, position, called)
                    new_states[index] = {**route(state, old, new, count), **rest}
            position += 1
        new_groups.append({**kept, **new})
    return {"state": new_states, "param_groups": new_groups}


def _lookup(values: Any, index: Any, position: int, name: str | None) -> Any:
    """The value of a parameter in a mapping by index or name, or in a sequence."""
    if isinstance(values, Mapping):
        return values.get(index, values.get(name))
    if values is None:
        return None
    if position >= len(values):
        raise ValueError(f"only {len(values)} values were given, for more parameters")
    return values[position]
