"""The compiled CPU kernels (csrc/), through ctypes. Loaded at the first use, never required."""

import ctypes
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .card import FusedRule
from .storage import Storage

# How parameters and states are kept, as numbered in csrc/cpu.cpp and csrc/cuda.cu.
PARAMETER = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
STATE = {None: 0, "float32": 1, "bfloat16": 2, "int8": 3}
ROUNDING = {"nearest": 0, "stochastic": 1, "kahan": 2}


class Kinds(NamedTuple):
    """What the tensors of one table have in common: `Kinds` of csrc/cpu.cpp, its fields in order."""

    parameter: int
    state: int
    rounding: int
    taken: bool


class Library:
    """The loaded kernels.

    Attributes:
        kernels: called without the GIL.
        read_tensor: address of the DLPack function that describes a tensor, or None where torch has none.
        instruction_set: "AVX-512", "AVX2" or "baseline".
    """

    def __init__(self, path: Path) -> None:
        self.kernels = ctypes.CDLL(str(path))
        with_gil = ctypes.PyDLL(str(path))
        self.same_items, self.same_values = with_gil.cpu_same_items, with_gil.cpu_same_values
        for same in (self.same_items, self.same_values):
            same.restype, same.argtypes = (
                ctypes.c_ssize_t,
                [ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t],
            )
        self.refresh = with_gil.cpu_refresh
        self.refresh.restype = ctypes.c_ssize_t
        self.refresh.argtypes = [
            *[ctypes.c_void_p] * 3,
            ctypes.py_object,
            *[ctypes.c_ssize_t] * 3,
            *[ctypes.c_void_p] * 3,
        ]
        self.kernels.cpu_square_sums.argtypes = [
            ctypes.c_int,
            ctypes.c_int64,
            *[ctypes.c_void_p] * 5,
            ctypes.c_int,
        ]
        self.kernels.cpu_column_square_sums.argtypes = [
            *[ctypes.c_int, ctypes.c_int64],
            *[ctypes.c_void_p] * 4,
            ctypes.c_int,
        ]
        self.kernels.cpu_instruction_set.restype = ctypes.c_char_p
        self.instruction_set: str = self.kernels.cpu_instruction_set().decode()
        self.read_tensor = _dlpack_reader()

    def step(self, rule: str) -> Any:
        """The C function that makes a step of a rule; AttributeError if there is none."""
        function = getattr(self.kernels, f"cpu_{rule}")
        function.restype = None
        function.argtypes = [
            ctypes.c_void_p,
            ctypes.c_int64,
            *[ctypes.c_void_p] * 3,
            ctypes.c_double,
            ctypes.c_int,
        ]
        return function


def _dlpack_reader() -> int | None:
    """`dltensor_from_py_object_no_sync` of torch's DLPackExchangeAPI (dlpack.h 1.3)."""
    capsule = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return None
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    api = (ctypes.c_void_p * 7).from_address(pointer(capsule, b"dlpack_exchange_api"))
    major = ctypes.c_uint32.from_buffer(api).value
    return api[5] if major == 1 else None  # version, previous API, then the functions: the fourth


@functools.cache
def load() -> tuple[Library | None, str]:
    """The library, or None and the reason why there is none."""
    found = sorted(Path(__file__).parent.glob("_cpu*.so"))
    if not found:
        return None, ("the CPU kernels were not built: install a C++ compiler, then this package again")
    try:
        return Library(found[0]), ""
    except OSError as error:
        if "GOMP" not in str(error) and "omp_" not in str(error):
            return None, f"{found[0].name} could not be loaded: {error}"
    try:  # a torch that shows its OpenMP runtime to nobody: take the system's
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
        return Library(found[0]), ""
    except OSError as error:
        return None, f"no OpenMP runtime for {found[0].name}: {error}"


class Members:
    """The objects in a list, or the values of a dict, to see fast whether it still holds the very same."""

    def __init__(self, container: list[Any] | dict[Any, Any]) -> None:
        self._kept = list(container.values() if isinstance(container, dict) else container)
        self._ids = (ctypes.c_void_p * len(self._kept))(*map(id, self._kept))

    def unchanged(self, container: list[Any] | dict[Any, Any]) -> bool:
        """Whether the container holds now what it held; False where there is no library to look."""
        library, _ = load()
        if library is None:
            return False
        same = library.same_values if isinstance(container, dict) else library.same_items
        return bool(same(container, self._ids, len(self._kept)))


def _fingerprint(x: Tensor) -> int:
    """A 64-bit number that changes with shape and strides, as csrc/tensors.h computes it."""
    h = 0
    for size, stride in zip(x.shape, x.stride(), strict=True):
        h = ((h * 1000003 + size) * 1000003 + stride) % 2**64
    return h


def kinds(p: Tensor, storage: Storage) -> Kinds:
    """How a parameter (a plain local tensor) and its states are kept."""
    return Kinds(PARAMETER[p.dtype], STATE[storage.state], ROUNDING[storage.rounding], storage.taken)


# then states, then scales
COLUMNS = (
    *("param", "grad", "step", "compensation", "previous", "previous_scale"),
    *("rows", "columns", "length", "decay", "block_sums"),
)


class Factors(NamedTuple):
    """The factors of one tensor: rows[i // length] * columns[i % length] for element i in memory's order.

    They have the dtype of the arithmetic; None is 1. decay is one number, None is 0.
    """

    rows: Tensor | None
    columns: Tensor | None
    length: int
    decay: Tensor | None = None


class Table:
    """The addresses that a fused step works on, one row a tensor: `COLUMNS`, the states, their scales.

    Made once and used again while every tensor stays where it was, which `refresh` verifies in C, in about
    0.25 microseconds a tensor.

    Args:
        rule: what is done to them.
        kinds: how the tensors are kept.
        params, grads: plain tensors of one dtype and device, dense, gradients laid out as the parameters.
        states: per parameter the state dict, as `optim.storage.Storage` makes it.
        factors: per parameter, for a rule that has them.
        block_sums: per parameter [blocks of 256 elements, rule.sums], in the dtype of the arithmetic, for a
            rule that has them.
    """

    def __init__(
        self,
        rule: FusedRule,
        kinds: Kinds,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[dict[str, Tensor]],
        factors: Sequence[Factors] = (),
        block_sums: Sequence[Tensor] = (),
    ) -> None:
        self._library, _ = load()
        self.rows, self._kinds, self._states = len(params), kinds, states
        names = ("step", "compensation", "pre_grad", "pre_grad_scale")
        ours = ("rows", "columns", "length", "decay", "block_sums")  # which the optimizer does not keep
        kept = (*rule.states, *(f"{name}_scale" for name in rule.states))
        columns = ("param", "grad", *names, *ours, *kept)
        self._width = len(columns)
        addresses = []
        for i, (p, g, state) in enumerate(zip(params, grads, states, strict=True)):
            rows, cols, length, decay = factors[i] if factors else Factors(None, None, 1)
            sums = block_sums[i] if block_sums else None
            row = [p, g, *map(state.get, names), rows, cols, max(length, 1), decay, sums]
            row += map(state.get, kept)
            addresses += [x.data_ptr() if isinstance(x, Tensor) else x or 0 for x in row]
        self._table = (ctypes.c_void_p * len(addresses))(*addresses)
        self._fingerprints = (ctypes.c_uint64 * self.rows)(*map(_fingerprint, params))
        self._ends = (ctypes.c_int64 * self.rows)(*itertools.accumulate(p.numel() for p in params))
        # Where the first row's states are, to see whether they were moved.
        at_rest = enumerate(columns)
        self._first = [(name, j) for j, name in at_rest if j > 4 and name not in ours and name in states[0]]
        # What C reads has to stay: the objects, and also memory that somebody's x.data = y lets go of.
        held = [x for state in states for name, x in state.items()]
        self._per_state = len(held) // self.rows
        # the places of `pre_grad` among the held objects
        self._pre_grad = [
            i * self._per_state + list(state).index("pre_grad")
            for i, state in enumerate(states if kinds.taken else ())
        ]
        fixed = [x for state in states for name, x in state.items() if name != "pre_grad"]
        self._kept = (params, fixed, [x.detach() for x in fixed], factors, block_sums)
        listed = (params, states, held)
        self._objects = tuple((ctypes.c_void_p * len(some))(*map(id, some)) for some in listed)

    def refresh(self) -> bool:
        """Takes over the parameters' present gradients; False if a new table has to be made."""
        library = self._library
        if library is None or library.read_tensor is None:
            return False
        # Code that moves states by assigning to their .data moves all of them: looking at one row will do.
        first = self._states[0]
        if any(first[name].data_ptr() != (self._table[column] or 0) for name, column in self._first):
            return False
        return bool(
            self.rows
            == library.refresh(
                *self._objects,
                "grad",
                self.rows,
                self._width,
                self._per_state,
                library.read_tensor,
                self._fingerprints,
                self._table,
            )
        )

    def hold_gradients(self) -> None:
        """Accepts the tensors that are the states `pre_grad` now."""
        held = self._objects[2]
        for at, state in zip(self._pre_grad, self._states, strict=True):
            held[at] = id(state["pre_grad"])

    def step(
        self,
        hyper: Sequence[float],
        factor: float,
        scale: Tensor | None,
        *,
        lr: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """Makes one step; the step counts go up by one.

        Args:
            hyper: the rule's Hyper (csrc/rules.h), in its order.
            factor, scale: their product is the factor on every gradient: the sign for maximize, and
                clipping and unscaling, if any.
            lr: on a device, takes the place of hyper[0].
            found_inf: on a device, nothing is changed if it is not zero.
        """
        raise NotImplementedError


class CpuTable(Table):
    """A table of CPU tensors."""

    def __init__(self, rule: FusedRule, kinds: Kinds, *tensors: Any) -> None:
        super().__init__(rule, kinds, *tensors)
        if self._library is None:
            raise RuntimeError(load()[1])
        self._step = self._library.step(rule.name)
        self._codes = (ctypes.c_int * 4)(*kinds)

    def step(
        self,
        hyper: Sequence[float],
        factor: float,
        scale: Tensor | None,
        *,
        lr: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        values = (ctypes.c_double * len(hyper))(*hyper)
        factor *= 1.0 if scale is None else float(scale)
        threads = torch.get_num_threads()
        self._step(self._codes, self.rows, self._table, self._ends, values, factor, threads)
