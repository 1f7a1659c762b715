"""How parameters and states are stored: csrc/storage.h in Python, bit for bit.

8-bit states have blocks of 256 elements in memory order. 8-bit and bfloat16 states are rounded
stochastically, with noise that depends only on the step, the element and the slot (index) of the state.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..card import Card
from .dtensor import local
from .layout import same_layout, zeros_like

State = dict[str, Tensor]  # one parameter's
Tensors = list[Tensor]  # one for each of some parameters
States = dict[str, Tensors]

BLOCK = 256
STATE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.uint8,  # codes; see Code in csrc/storage.h
}
ROUNDINGS = ("nearest", "stochastic", "kahan", "split")  # numbered as Rounding in csrc/table.h
# Options of a group that determine how its states are stored; loading a checkpoint does not change them.
STORAGE_OPTIONS = ("state_dtype", "min_int8_size", "param_rounding")


# ---- noise


def _hash(x: Tensor) -> Tensor:
    """32 random bits for each 32-bit counter, in int64."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def noise(step: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return random 32-bit words for elements 0 .. count - 1 at a step: int64 [count]."""
    element = torch.arange(count, device=device)
    block = element // BLOCK
    place = _hash((step * 0x9E3779B9 + element % BLOCK) & 0xFFFFFFFF)
    base = _hash(torch.tensor((step ^ 0x5BD1E995) & 0xFFFFFFFF, device=device))
    return place ^ _hash((base + block + (block >> 32) * 0x85EBCA6B) & 0xFFFFFFFF)


def noise_bits(words: Tensor, slot: int) -> Tensor:
    """Return a slot's 16 bits of the words [count]: the lower ones for even slots, the upper for odd ones."""
    return words >> 16 if slot % 2 else words & 0xFFFF


def noise_of_code(words: Tensor, slot: int) -> Tensor:
    """Return a slot's 19 bits of the words [count] for an 8-bit code.

    The upper 8 of even and odd slots have no bit in common.
    """
    return words >> 13 if slot % 2 else (words & 0xFFFFFF) >> 5


def noise_of_parameter(words: Tensor) -> Tensor:
    """Return 16 further bits of the words [count], for the parameter itself."""
    return (((words ^ (words >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF) >> 16


# ---- values, as [count] tensors in memory order


def flat(x: Tensor) -> Tensor:
    """Return the elements of a dense tensor of any shape in memory order: a view [elements]."""
    return x.as_strided((x.numel(),), (1,), x.storage_offset())


def to_bfloat16(x: Tensor, noise: Tensor) -> Tensor:
    """Round float32 numbers stochastically to bfloat16; noise is 16 random bits each. Any one shape."""
    up = (x.view(torch.int32) + noise.to(torch.int32)) >> 16
    up = torch.where(x.isnan(), 0x7FC0, up).to(torch.int16)
    return up.view(torch.bfloat16)


# ---- what a bfloat16 parameter cannot hold of its value: its rest, in 2 more bytes


class Rest(NamedTuple):
    """The state in which a rounding keeps the rest of a bfloat16 parameter."""

    name: str
    dtype: torch.dtype


RESTS = {"kahan": Rest("compensation", torch.bfloat16), "split": Rest("remainder", torch.int16)}
REST_NAMES = frozenset(rest.name for rest in RESTS.values())


def exact(p: Tensor, state: State) -> Tensor:
    """Return a parameter of any shape, no DTensor, in the arithmetic's dtype, with the rest in its state.

    A sum of bits that is a NaN where the parameter is none was not stored here: the parameter was set to 0 or
    inf from outside.
    """
    value = p.to(torch.promote_types(p.dtype, torch.float32))
    if p.dtype == torch.bfloat16 and "compensation" in state:
        return value + state["compensation"]
    if p.dtype == torch.bfloat16 and "remainder" in state:
        joined = (value.view(torch.int32) + state["remainder"]).view(torch.float32)
        return torch.where(joined.isnan(), value, joined)
    return value


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return float32 numbers of any shape as bfloat16, rounded to nearest, and as int16 the rest.

    Ties go away from zero, so that the bits of the bfloat16 times 2^16 plus the rest are those of the number.
    """
    bits = torch.where(x.isnan(), 0x7FC00000, x.view(torch.int32))
    return ((bits + 0x8000) >> 16).to(torch.int16).view(torch.bfloat16), bits.to(torch.int16)


def _blocks(x: Tensor) -> Tensor:
    """Reshape [count] to [blocks, 256], padded with zeros."""
    return torch.nn.functional.pad(x, (0, -x.numel() % BLOCK)).view(-1, BLOCK)


# y - 2 for the largest code (Code::kTop), by whether a state is signed
_TOP = {True: 494.0, False: 126974.0}
_BASE = 0x40000000  # the bits of 2.0


def encode(x: Tensor, signed: bool, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return 8-bit codes of float32 numbers, uint8 [count], and their blocks' maxima, float32 [blocks].

    Args:
        x: float32 [count].
        signed: False if no number is negative.
        noise: int64 [count], 19 random bits each; 2^18 rounds to nearest.
    """
    count = x.numel()
    magnitude = _blocks(x.abs() if signed else x)
    # compared by their bits, so that NaN is above inf
    maxima = magnitude.view(torch.int32).amax(1).view(torch.float32) if count else x.new_zeros(0)
    factor = _TOP[signed] * (1 - 2.0**-22) / maxima
    factor = torch.where(factor < 3e38, factor, (maxima > 0).to(maxima.dtype) * 3e38)[:, None]
    code = (2.0 + magnitude * factor).view(torch.int32).flatten()[:count] + noise
    if signed:
        return ((code >> 19 & 0x7F) | (x.signbit().to(torch.int64) << 7)).to(torch.uint8), maxima
    least = x.view(torch.int32) >> 24  # not zero from 2^-125 on: such numbers are not stored as zero
    return torch.maximum(code >> 19 & 0xFF, least.clamp(max=1)).to(torch.uint8), maxima


def decode(codes: Tensor, maxima: Tensor, signed: bool) -> Tensor:
    """Return the float32 numbers [count] of 8-bit codes [count] with the maxima of their blocks [blocks]."""
    code = codes.to(torch.int32)
    y = ((code & (0x7F if signed else 0xFF)) << 19 | _BASE).view(torch.float32)
    factor = maxima * torch.tensor(1 / _TOP[signed], dtype=torch.float32, device=maxima.device)
    x = (_blocks(y - 2.0) * factor[:, None]).flatten()[: codes.numel()]
    return torch.where(code > 0x7F, -x, x) if signed else x


# ---- the tensors of a parameter


class StateSpec(NamedTuple):
    """The states of one parameter: the names of those of its shape; names and shapes of the small ones."""

    full: tuple[str, ...]
    small: tuple[tuple[str, tuple[int, ...]], ...] = ()


class Storage(NamedTuple):
    """How one parameter and its states are stored.

    Attributes:
        state: a key of STATE_DTYPES, or None for the parameter's dtype, rounded to nearest.
        rounding: the parameter's, one of ROUNDINGS.
        taken: whether the state `Card.previous` is the gradient itself, "pre_grad", times "pre_grad_scale".
    """

    state: str | None
    rounding: str
    taken: bool

    @property
    def rest(self) -> Rest | None:
        """The state that the rounding keeps, if it does."""
        return RESTS.get(self.rounding)

    @property
    def of_iterates(self) -> "Storage":
        """How states are stored that are points of the parameter's space; see `Card.iterates`."""
        return self._replace(state="float32") if self.state == "int8" else self

    @classmethod
    def of(cls, p: Tensor, group: dict[str, Any], taken: bool) -> "Storage":
        """Return the storage of a parameter of any shape, from the options of its group."""
        state, rounding = group["state_dtype"], group["param_rounding"]
        if state == "int8" and p.numel() < group["min_int8_size"]:
            state = "float32"
        return cls(state, rounding if p.dtype == torch.bfloat16 else "nearest", taken)

    def fit(
        self, card: Card, spec: StateSpec, p: Tensor, state: State, step_device: torch.device | str
    ) -> None:
        """Allocate the states of a parameter of any shape, or convert those whose dtype or layout changed.

        Full states get the parameter's shape, their scales [blocks], small states those of `spec`. What the
        rounding keeps apart from the parameter is left to `fit_rest`.
        """
        step = state.get("step", 0.0)
        if not isinstance(step, Tensor):
            step = torch.tensor(float(step), dtype=torch.float32, device="cpu")
        state["step"] = step.to(step_device, torch.float32)
        work = torch.promote_types(p.dtype, torch.float32)
        for name, shape in spec.small:
            old = state.get(name)
            state[name] = torch.zeros(shape, device=local(p).device, dtype=work) if old is None else old
            state[name] = state[name].to(local(p).device, work)
        for slot, name in enumerate(card.states):
            if name not in spec.full:
                continue
            if name == card.previous and self.taken:
                self._fit_taken(name, p, state, slot)
                continue
            if name == card.previous and "pre_grad" in state:
                pre_grad, scale = state.pop("pre_grad"), state.pop("pre_grad_scale", 1.0)
                state[name] = -torch.as_tensor(scale, device=local(p).device) * pre_grad
            storage = self.of_iterates if name in card.iterates else self
            storage._fit_one(name, p, state, slot, signed=name not in card.nonnegative)

    def fit_rest(self, card: Card, p: Tensor, state: State) -> None:
        """Do the same for the rest of a parameter of any shape; that of another rounding is converted.

        Only a step does this: when a checkpoint is loaded, the parameter may not have its value yet. The
        parameter stays as it is, and its new rest holds as much of the old one as it can.
        """
        slot, own = len(card.states), self.rest
        others = {name: local(state.pop(name)) for name in REST_NAMES & state.keys() - {own and own.name}}
        if own is None:
            return
        if others and own.name not in state:
            state[own.name] = zeros_like(p, slot, own.dtype)
            value, rounded = exact(local(p), others), local(p).to(torch.float32)
            if own.name == "remainder":
                value, rounded = value.view(torch.int32), rounded.view(torch.int32)
            rest = value - rounded
            local(state[own.name]).copy_(rest if own.name == "compensation" else rest.clamp(-0x8000, 0x7FFF))
        self._fit_one(own.name, p, state, slot, dtype=own.dtype)

    def copy(self, card: Card, spec: StateSpec, p: Tensor, saved: State) -> State:
        """Return a copy of a saved state of p, any shape, as this storage keeps it; see `fit_rest`."""
        state = dict(saved)
        self.fit(card, spec, p, state, "cpu")
        slots = {name: slot for slot, name in enumerate(card.states)} | {"pre_grad": 0}
        slots |= dict.fromkeys(REST_NAMES, len(card.states))
        return {
            name: zeros_like(p, slots[name], x.dtype).copy_(x) if name in slots else x.clone()
            for name, x in state.items()
        }

    def load_params(self, params: Tensors, states: list[State]) -> Tensors:
        """Return parameters of one dtype, any shapes, in the arithmetic's dtype, with their rests."""
        return [exact(p, state) for p, state in zip(params, states, strict=True)]

    def store_param(self, p: Tensor, value: Tensor, state: State, words: Tensor | None) -> None:
        """Store the new value of a parameter, of its shape; `words` [elements] is noise for the rounding."""
        if self.rounding == "stochastic":
            assert words is not None
            rounded = torch.empty_like(value, dtype=p.dtype)  # dense; p may not be
            flat(rounded).copy_(to_bfloat16(flat(value), noise_of_parameter(words)))
            p.copy_(rounded)
        elif self.rounding == "split":
            upper, rest = split(value)
            p.copy_(upper)
            state["remainder"].copy_(rest)
        elif p is not value:
            p.copy_(value)
            if self.rounding == "kahan":
                state["compensation"].copy_(value - p.to(value.dtype))

    def _fit_one(
        self, name: str, p: Tensor, state: State, slot: int, signed: bool = True, dtype: Any = None
    ) -> None:
        wanted = dtype or (p.dtype if self.state is None else STATE_DTYPES[self.state])
        scale, old = f"{name}_scale", state.get(name)
        if scale in state:
            state[scale] = state[scale].to(p.device, torch.float32).contiguous()
        if (
            old is not None
            and old.dtype == wanted
            and same_layout(local(old), local(p))
            and not local(old).is_neg()
        ):
            if old.device != p.device:
                state[name] = old.to(p.device)
            return
        value = None if old is None else load(state, name, signed)
        state[name] = zeros_like(p, slot, wanted)
        state.pop(scale, None)
        if wanted == torch.uint8:
            state[scale] = torch.zeros(-(-p.numel() // BLOCK), dtype=torch.float32, device=p.device)
        if value is not None:
            value = zeros_like(p, slot, value.dtype).copy_(value)  # the layout of the new state
            store(state, name, slot, value, signed, None)

    def _fit_taken(self, name: str, p: Tensor, state: State, slot: int) -> None:
        if name in state:
            value = load(state, name, signed=True)
            state["pre_grad"] = zeros_like(p, slot, p.dtype).copy_(-value)
            state.pop(name)
            state.pop(f"{name}_scale", None)
        elif "pre_grad" not in state:
            assert p.grad is not None
            state["pre_grad"] = p.grad  # a stand-in for the first step, which has no difference
        pre_grad = state["pre_grad"]
        if (
            pre_grad.dtype != p.dtype
            or pre_grad.device != p.device
            or not same_layout(local(pre_grad), local(p))
        ):
            state["pre_grad"] = zeros_like(p, slot, p.dtype).copy_(pre_grad)
        work = torch.promote_types(p.dtype, torch.float32)
        scale = state.get("pre_grad_scale", 1.0)
        if not isinstance(scale, Tensor):
            scale = torch.tensor(float(scale), device="cpu")
        state["pre_grad_scale"] = scale.to(p.device, work)


def load(state: State, name: str, signed: bool) -> Tensor:
    """Return a state of any shape, decoded if it is stored in 8 bits."""
    codes, maxima = state[name], state.get(f"{name}_scale")
    if maxima is None:
        return codes
    return decode(flat(codes), maxima, signed).as_strided(codes.shape, codes.stride())


def store(state: State, name: str, slot: int, x: Tensor, signed: bool, words: Tensor | None) -> None:
    """Store a new value of a state, of its shape.

    `words` [elements] is the noise for stochastic rounding, or None for rounding to nearest.
    """
    stored, maxima = state[name], state.get(f"{name}_scale")
    if maxima is not None:
        if words is None:
            bits = x.new_full((x.numel(),), 1 << 18, dtype=torch.int64)
        else:
            bits = noise_of_code(words, slot)
        codes, new_maxima = encode(flat(x.float()), signed, bits)
        flat(stored).copy_(codes)
        maxima.copy_(new_maxima)
    elif words is not None and stored.dtype == torch.bfloat16:
        flat(stored).copy_(to_bfloat16(flat(x), noise_bits(words, slot)))
    elif stored is not x:
        stored.copy_(x)
