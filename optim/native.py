"""The compiled CPU kernels (csrc/), through ctypes. Loaded at the first use, never required."""

import ctypes
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .card import Card
from .layout import is_dense

# torch dtype -> the storage code of csrc/cpu.cpp
STORAGE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


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
            *[ctypes.c_ssize_t] * 2,
            *[ctypes.c_void_p] * 3,
        ]
        self.kernels.cpu_instruction_set.restype = ctypes.c_char_p
        self.instruction_set: str = self.kernels.cpu_instruction_set().decode()
        self.read_tensor = _dlpack_reader()

    def step(self, rule: str) -> Any:
        """The C function that makes a step of a rule; AttributeError if there is none."""
        function = getattr(self.kernels, f"cpu_{rule}")
        function.argtypes = [
            ctypes.c_int,
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


def why_not_fused(card: Card, p: Tensor) -> str:
    """Why no fused kernel can update this parameter (a plain local tensor); empty if one can."""
    if p.device.type not in card.fused_devices:
        devices = " and ".join(card.fused_devices) or "no device"
        return f"{card.title} has fused kernels for {devices}, not for {p.device.type}"
    library, reason = load()
    if library is None:
        return reason
    if not is_dense(p):
        return (
            f"a parameter of shape {tuple(p.shape)} and strides {p.stride()} does not fill its memory; "
            "make it .contiguous()"
        )
    return ""


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


class Table:
    """The addresses that a fused step works on: one row {parameter, gradient, step, states...} a tensor.

    Made once and used again while every tensor stays where it was, which `refresh` verifies in C, in about
    0.25 microseconds a tensor.

    Args:
        rule: name of the update rule.
        params, grads: plain CPU tensors of one dtype, dense, gradients laid out as the parameters.
        states: per parameter the state dict, with a 0-dim float32 "step" and the tensors named in `names`.
        names: state names in the order of the rule.
    """

    def __init__(
        self,
        rule: str,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[dict[str, Tensor]],
        names: Sequence[str],
    ) -> None:
        library, reason = load()
        if library is None:
            raise RuntimeError(reason)
        self._library, self._step = library, library.step(rule)
        self._states, self._names = states, names
        held = [x for state in states for x in state.values()]
        # What C reads has to stay: the objects, and also memory that somebody's x.data = y lets go of.
        self._kept = (params, states, held, [x.detach() for x in held])
        self._objects = tuple((ctypes.c_void_p * len(some))(*map(id, some)) for some in self._kept[:3])
        self.rows, self._width = len(params), 3 + len(names)
        addresses = [
            x.data_ptr()
            for p, g, state in zip(params, grads, states, strict=True)
            for x in (p, g, state["step"], *(state[name] for name in names))
        ]
        self._table = (ctypes.c_void_p * len(addresses))(*addresses)
        self._fingerprints = (ctypes.c_uint64 * self.rows)(*map(_fingerprint, params))
        self._ends = (ctypes.c_int64 * self.rows)(*itertools.accumulate(p.numel() for p in params))
        self._storage = STORAGE[params[0].dtype]
        self._addresses = tuple(ctypes.addressof(x) for x in (self._table, self._ends, self._fingerprints))

    def refresh(self) -> bool:
        """Takes over the parameters' present gradients; False if a new table has to be made."""
        table, _, fingerprints = self._addresses
        library, rows, width = self._library, self.rows, self._width
        if library.read_tensor is None:
            return False
        # Code that moves states by assigning to their .data moves all of them: looking at one row will do.
        first = self._states[0]
        if any(first[name].data_ptr() != self._table[3 + j] for j, name in enumerate(self._names)):
            return False
        objects = self._objects
        return bool(
            rows == library.refresh(*objects, "grad", rows, width, library.read_tensor, fingerprints, table)
        )

    def step(self, hyper: Sequence[float], grad_scale: float) -> None:
        """Makes one step; the step counts go up by one.

        Args:
            hyper: the rule's Hyper (csrc/rules.h), in its order.
            grad_scale: factor on every gradient: clipping, unscaling, and the sign for maximize.
        """
        values = (ctypes.c_double * len(hyper))(*hyper)
        table, ends, _ = self._addresses
        threads = torch.get_num_threads()
        self._step(self._storage, self.rows, table, ends, ctypes.addressof(values), grad_scale, threads)
