"""Read the states and groups that other implementations save as ours.

A `Source` describes one implementation: the keys of its states and groups, and how they become a state of one
of our optimizers (Adan, AdamW, NAdamW, AdEMAMix, Adam-mini). An option that we lack is an error, never a
guess. Tensors have the parameter's shape, except for step counts (scalars) and where a docstring says
otherwise.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine import storage

Saved = dict[str, Any]  # the state of a parameter, or a group, as saved

# Keys of a group that do not affect the update: they are kept unchanged.
LEARNING_RATES = frozenset({"initial_lr", "max_lr", "min_lr", "swa_lr"})  # schedulers'
BOOKKEEPING = LEARNING_RATES | {
    *("params", "param_names", "name", "base_momentum", "max_momentum"),
    *("lr_scale", "lr_mult", "wd_mult"),  # factors in MAE's and Megatron's schedules
}
# Options of other implementations that change their steps and that ours lack, with the harmless value.
UNKNOWN_HERE = {
    "adanorm": False,
    "amsgrad": False,
    "bias_correction": True,
    "caution": False,
    "cautious": False,
    "clipping_threshold": None,
    "corrected_weight_decay": False,
    "fixed_decay": False,
    "restart_cond": None,
    "use_gc": False,
}
# Options of single optimizers of this package, which a conversion to the same one takes along.
OWN_OPTIONS = ("momentum_decay", "alpha", "alpha_warmup", "beta3_warmup")


def refuse_options(group: Saved, known: Collection[str] = (), decoupled: bool = True) -> None:
    """Raise ValueError for an option of another implementation that makes its steps differ from ours.

    Args:
        group: the other implementation's.
        known: the options that our optimizer has.
        decoupled: whether our weight decay is decoupled.
    """
    for name, harmless in UNKNOWN_HERE.items():
        if name not in known and group.get(name, harmless) != harmless:
            raise ValueError(
                f"a checkpoint with {name}={group[name]!r}: there is no such option here, and without it "
                "the steps would differ"
            )
    if group.get("decoupled_weight_decay", decoupled) != decoupled and group.get("weight_decay"):
        there, here = ("part of the gradient", "decoupled")[:: 1 if decoupled else -1]
        raise ValueError(
            f"a checkpoint with weight_decay={group['weight_decay']} that is {there} "
            f"(decoupled_weight_decay={not decoupled}): here it is {here}, and the steps would differ"
        )


# ---- sources: states of other implementations as ours


@dataclass(frozen=True)
class Source:
    """An implementation with known state dicts.

    Attributes:
        title: its name for people.
        optimizer: the optimizer of ours that its states are converted for.
        keys: keys that the state of a parameter always has.
        more_keys: keys that it may also have.
        state: converts the state of a parameter, given that state, its group, and the shape of the parameter
            if known.
        group: converts the options of a group; the second argument is whether the caller named the source.
        marks: keys that its groups always have.
        options: all keys that its groups can have, if that distinguishes it from others; None allows any.
    """

    title: str
    optimizer: str
    keys: frozenset[str]
    more_keys: frozenset[str]
    state: Callable[[Saved, Saved, Sequence[int] | None], Saved]
    group: Callable[[Saved, bool], Saved]
    marks: frozenset[str] = frozenset()
    options: frozenset[str] | None = None

    def why_not(self, state: Saved) -> str:
        """Return what is wrong with the keys of a state; "" if nothing."""
        if missing := self.keys - state.keys():
            return f"it lacks {', '.join(sorted(missing))}"
        if foreign := state.keys() - self.keys - self.more_keys:
            return f"it has {', '.join(sorted(foreign))}"
        return ""

    def ours(self, state: Saved, group: Saved, shape: Sequence[int] | None) -> Saved:
        """Return the state of a parameter as ours; ValueError if its keys are not this source's."""
        if problem := self.why_not(state):
            raise ValueError(f"not a state of {self.title}: {problem}")
        return self.state(state, group, shape)

    def made(self, states: Collection[Saved], groups: Collection[Saved]) -> bool:
        """Return whether these states and groups look like this source's."""
        return not any(map(self.why_not, states)) and all(
            self.marks <= group.keys()
            and (self.options is None or group.keys() <= self.options | BOOKKEEPING)
            for group in groups
        )


def _step(state: Saved, group: Saved) -> Tensor:
    """The step count from which the source would continue: the parameter's own, or its group's."""
    step = state.get("step", group.get("step"))
    if step is None:
        raise ValueError(
            "there is no step count, neither in the state nor in the group: set "
            "state_dict['param_groups'][...]['step']"
        )
    return torch.tensor(float(step), dtype=torch.float32, device="cpu")


def _official(state: Saved, group: Saved, shape: Sequence[int] | None) -> Saved:
    """Until December 2022, and in its fairseq edition, it kept the previous gradient itself.

    After a restart there is none. pytorch_optimizer keeps minus that gradient under another name.
    """
    step, m = _step(state, group), state["exp_avg"]
    if name := next((name for name in ("neg_pre_grad", "previous_grad") if name in state), None):
        previous = state[name]
    elif "pre_grad" in state:
        previous = -state["pre_grad"]
    elif step == 0:
        previous = torch.zeros_like(m)
    else:
        raise ValueError(f"no previous gradient (neg_pre_grad or pre_grad) in a state of step {step:.0f}")
    return adan_state(step, m, state["exp_avg_diff"], state["exp_avg_sq"], previous)


def adan_state(step: Tensor, m: Tensor, v: Tensor, n: Tensor, neg_pre_grad: Tensor) -> Saved:
    """Return a state of our Adan, of a scalar step count and tensors of the parameter's shape."""
    return dict(step=step, exp_avg=m, exp_avg_diff=v, exp_avg_sq=n, neg_pre_grad=neg_pre_grad)


def _optimi(state: Saved, group: Saved, shape: Sequence[int] | None) -> Saved:
    """Its moments include their bias corrections, and its prev_grad is minus the gradient."""
    step = _step(state, group)
    m, v, n = (
        state[name] * (1 - group[f"beta{i}"] ** int(step))
        for i, name in enumerate(("exp_avg", "exp_avg_diff", "exp_avg_sq"), start=1)
    )
    ours = adan_state(step, m, v, n, state["prev_grad"])
    kahan = state.get("kahan_comp")  # None or a placeholder without Kahan summation
    if isinstance(kahan, Tensor) and kahan.is_floating_point():
        ours["compensation"] = kahan
    return ours


def _lucidrains(state: Saved, group: Saved, shape: Sequence[int] | None) -> Saved:
    """Its first step leaves the moments at zero; from the second on the steps are Adan's."""
    return adan_state(_step(state, group), state["m"], state["v"], state["n"], -state["prev_grad"])


def _adam(state: Saved, group: Saved, shape: Sequence[int] | None) -> Saved:
    return dict(step=_step(state, group), exp_avg=state["exp_avg"], exp_avg_sq=state["exp_avg_sq"])


def _bitsandbytes(state: Saved, group: Saved, shape: Sequence[int] | None) -> Saved:
    """An 8-bit number is an entry of the table qmap [256] times the maximum of its block, absmax [blocks]."""
    values = []
    for i in "12":
        x = state[f"state{i}"]
        if x.dtype == torch.uint8:
            table, maxima = state[f"qmap{i}"], state[f"absmax{i}"]
            size = next((b for b in (256, 2048) if -(-x.numel() // b) == maxima.numel()), None)
            if size is None:
                raise ValueError(f"absmax{i} has {maxima.numel()} blocks for {x.numel()} numbers")
            flat = table[storage.flat(x).long()] * maxima.repeat_interleave(size)[: x.numel()]
            x = flat.as_strided(x.shape, x.stride())
        values.append(x)
    return dict(step=_step(state, group), exp_avg=values[0], exp_avg_sq=values[1])


def _adam_mini(state: Saved, group: Saved, shape: Sequence[int] | None) -> Saved:
    """Its second moment is [blocks]: one number for a head, a row or a tensor; in biases, for an element."""
    m, v = state["m"], state["v"] if "v" in state else state["vmean"]
    if shape is not None:
        m = m.reshape(tuple(shape))
    elif "head_per_gpu" in state:
        raise ValueError(
            f"m is stored as [heads, numbers of a head], {tuple(m.shape)}: give the shape with shapes="
        )
    return dict(step=_step(state, group), exp_avg=m, exp_avg_sq=wide(v).reshape(-1))


def _own(state: Saved, group: Saved, shape: Sequence[int] | None) -> Saved:
    """8-bit states are decoded; a taken gradient becomes minus the previous gradient."""
    names = [name for name in state if not name.endswith("_scale") and name not in ("step", "pre_grad")]
    ours = {name: storage.load(state, name, name != "exp_avg_sq") for name in names}
    if "pre_grad" in state:
        ours["neg_pre_grad"] = -state.get("pre_grad_scale", 1.0) * state["pre_grad"]
    return dict(step=_step(state, group), **ours)


def wide(x: Tensor) -> Tensor:
    """Return x, any shape, in float32, or in float64 if it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# ---- their groups


def _same(group: Saved, said: bool) -> Saved:
    names = ("lr", "betas", "eps", "weight_decay", "no_prox", "maximize")
    return {name: group[name] for name in names if name in group}


def _own_group(group: Saved, said: bool) -> Saved:
    return {
        **_same(group, said),
        **{name: group[name] for name in ("caution", *OWN_OPTIONS) if name in group},
    }


def _pytorch_optimizer_group(group: Saved, said: bool) -> Saved:
    return {**_same(group, said), "no_prox": group.get("weight_decouple", False)}


def _optimi_group(group: Saved, said: bool) -> Saved:
    if group.get("adam_wd"):
        raise ValueError(
            "adam_wd=True: optimi accepts it and, up to 0.3.3, ignores it: set it to False in the groups, "
            "and no_prox=True in the converted ones if you want decoupled decay"
        )
    decay = group["weight_decay"]
    if group.get("decouple_lr") and decay:
        decay = decay / group["max_lr"]  # it multiplies by lr / max_lr, ours by lr
    betas = tuple(group[f"beta{i}"] for i in (1, 2, 3))
    return dict(lr=group["lr"], betas=betas, eps=group["eps"], weight_decay=decay, no_prox=False)


def _lucidrains_group(group: Saved, said: bool) -> Saved:
    betas = tuple(1 - beta for beta in group["betas"])
    return {**_same(group, said), "betas": betas, "no_prox": False}


def _undecided_group(what: str, source: str) -> Callable[[Saved, bool], Saved]:
    """For a source that does not always save how weight decay is applied."""

    def translate(group: Saved, said: bool) -> Saved:
        if group.get("weight_decay") and not said and "decoupled_weight_decay" not in group:
            raise ValueError(
                f"weight_decay={group['weight_decay']}, and the checkpoint does not say {what}: "
                f"give source={source!r} if the decay is decoupled"
            )
        return _same(group, said)

    return translate


def _bitsandbytes_group(group: Saved, said: bool) -> Saved:
    if len(group["betas"]) != 2 or group.get("alpha"):
        raise ValueError("a checkpoint of AdEMAMix, which has a second mean of the gradient")
    return _same(group, said)


def _adam_mini_group(group: Saved, said: bool) -> Saved:
    betas = (group["beta1"], group["beta2"])
    return dict(lr=group["lr"], betas=betas, eps=group["eps"], weight_decay=group["weight_decay"])


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


_ADAN = "exp_avg exp_avg_diff exp_avg_sq"
_OWN = "compensation remainder exp_avg_scale exp_avg_sq_scale"
_GROUP = "lr betas eps weight_decay"
_KEPT = _set("state_dtype min_int8_size param_rounding")  # every group of ours

SOURCES = {
    "adan": Source(
        "Adan of this package", "adan", _set(f"step {_ADAN}"),
        _set(f"neg_pre_grad pre_grad neg_pre_grad_scale pre_grad_scale exp_avg_diff_scale {_OWN}"),
        _own, _own_group, marks=_KEPT, options=_set(f"{_GROUP} maximize caution no_prox") | _KEPT,
    ),
    "official": Source(
        "Adan of sail-sg/Adan in any version, its fairseq edition, and NeMo's copy", "adan",
        _set(_ADAN), _set("step neg_pre_grad pre_grad"), _official, _same,
        options=_set(f"{_GROUP} amsgrad max_grad_norm no_prox foreach fused step"),
    ),
    "timm": Source(
        "Adan of timm", "adan",
        _set(f"{_ADAN} neg_pre_grad"), _set("step"), _official, _same,
        marks=_set("caution"), options=_set(f"{_GROUP} no_prox caution foreach step"),
    ),
    "pytorch_optimizer": Source(
        "Adan of pytorch_optimizer", "adan",
        _set(f"{_ADAN} previous_grad"), _set("step"), _official, _pytorch_optimizer_group,
    ),
    "optimi": Source(
        "Adan of optimi (torch-optimi)", "adan",
        _set(f"{_ADAN} prev_grad"), _set("step kahan_comp"), _optimi, _optimi_group,
        marks=_set("beta1 beta2 beta3"),
    ),
    "lucidrains": Source(
        "Adan of lucidrains (adan-pytorch)", "adan",
        _set("step m v n prev_grad"), _set(""), _lucidrains, _lucidrains_group,
    ),
    "adamw": Source(
        "AdamW of this package", "adamw", _set("step exp_avg exp_avg_sq"), _set(_OWN), _own, _own_group,
        marks=_KEPT, options=_set(f"{_GROUP} amsgrad decoupled_weight_decay maximize caution") | _KEPT,
    ),
    "nadamw": Source(
        "NAdamW of this package", "nadamw", _set("step exp_avg exp_avg_sq"), _set(_OWN), _own, _own_group,
        marks=_KEPT | {"momentum_decay"},
    ),
    "ademamix": Source(
        "AdEMAMix of this package", "ademamix", _set("step exp_avg exp_avg_sq exp_avg_slow"),
        _set(f"{_OWN} exp_avg_slow_scale"), _own, _own_group, marks=_KEPT,
    ),
    "torch": Source(
        "AdamW or Adam of torch.optim", "adamw",
        _set("step exp_avg exp_avg_sq"), _set(""), _adam, _undecided_group("Adam or AdamW", "torch"),
        marks=_set("amsgrad"),
        options=_set(
            f"{_GROUP} amsgrad maximize foreach capturable differentiable fused decoupled_weight_decay"
        ),
    ),
    "apex": Source(
        "FusedAdam of apex", "adamw",
        _set("exp_avg exp_avg_sq"), _set("step"), _adam, _undecided_group("adam_w_mode", "apex"),
        marks=_set("bias_correction"), options=_set(f"{_GROUP} bias_correction step"),
    ),
    "bitsandbytes": Source(
        "Adam or AdamW of bitsandbytes, 32 or 8 bits", "adamw",
        _set("step state1 state2"), _set("qmap1 qmap2 absmax1 absmax2"), _bitsandbytes, _bitsandbytes_group,
    ),
    "adam_mini": Source(
        "Adam-mini of this package", "adam_mini", _set("step exp_avg exp_avg_sq"), _set(_OWN),
        _own, _own_group, marks=_KEPT,
    ),
    "adam_mini_official": Source(
        "Adam-mini of zyushun/Adam-mini (adam-mini)", "adam_mini",
        _set("step m"), _set("v vmean head_per_gpu neuron_per_gpu reduced block_numel"),
        _adam_mini, _adam_mini_group, marks=_set("beta1 beta2"),
    ),
}  # fmt: skip

# Names of optimizers' states, without "_scale"; the cards have those of optimizers that are not listed above.
# Any other entry in a state belongs to a wrapper, a pruner or the like.
STATE_NAMES = _set("exp_avg_slow mu_product").union(
    *({key.removesuffix("_scale") for key in s.keys | s.more_keys} for s in SOURCES.values())
)


def recognise(state_dict: Mapping[str, Any]) -> str:
    """Return the key of SOURCES for a state dict, judged by the keys of its states and groups.

    Raises:
        ValueError: if it is not an optimizer's, has no states yet, or fits none or several of the sources.
    """
    states, groups = parts(state_dict)
    if not states:
        raise ValueError("there are no states in it (before the first step), so nothing to convert")
    found = [name for name, source in SOURCES.items() if source.made(states.values(), groups)]
    if "adam_mini" in found:  # it differs from AdamW in the shape of the second moment
        mini = any(state["exp_avg_sq"].shape != state["exp_avg"].shape for state in states.values())
        found = ["adam_mini"] if mini else [name for name in found if name != "adam_mini"]
    if len(found) == 1:
        return found[0]
    index, state = next(iter(states.items()))
    options = ", ".join(sorted(groups[0]))
    keys = f"the state of parameter {index} has {', '.join(sorted(state))}; its group {options}"
    possible = [name for name, source in SOURCES.items() if not any(map(source.why_not, states.values()))]
    if possible:
        names = " or ".join(map(repr, found or possible))
        raise ValueError(f"several optimizers have such states: give source={names} if that is it; {keys}")
    raise ValueError(f"not a state dict of an implementation known here ({', '.join(SOURCES)}): {keys}")


def parts(state_dict: Mapping[str, Any]) -> tuple[dict[Any, Saved], list[Saved]]:
    """Return copies of the states that are not empty, by parameter, and of the groups.

    Raises:
        ValueError: if it is not the state dict of an optimizer.
    """
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        is_dict = isinstance(state_dict, Mapping)
        keys = ", ".join(map(str, state_dict)) if is_dict else type(state_dict).__name__
        raise ValueError(f"not the state dict of an optimizer: it has {keys}, not state and param_groups")
    states = {}
    for index, saved in state_dict["state"].items():
        state = dict(saved)
        state.update(state.pop("__bnb_optimizer_quant_state__", {}))  # hidden from FSDP
        state.pop("group", None)  # optimi's, with gradient release
        if state:
            states[index] = state
    return states, [dict(group) for group in state_dict["param_groups"]]
