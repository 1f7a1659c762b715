"""The compiled CPU kernels (csrc/), called through ctypes. Loaded at the first use, never required."""

import ctypes
import functools
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..card import FusedRule
from .contract import check_row
from .storage import RESTS, ROUNDINGS, STATE_DTYPES, Storage

# How parameters and states are stored, as numbered in csrc/table.h.
PARAMETER = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
STATE = {None: 0, "float32": 1, "bfloat16": 2, "int8": 3}
STATE_DTYPE = {number: STATE_DTYPES[name] if name else None for name, number in STATE.items()}
ROUNDING = {name: number for number, name in enumerate(ROUNDINGS)}


class Kinds(NamedTuple):
    """What the tensors of one table have in common: `Kinds` of csrc/table.h, its fields in order."""

    parameter: int
    state: int
    rounding: int
    taken: bool


# Functions of torch's C interface and of its C++ library, in the order of `Torch` in csrc/tensors.h.
_SHIM = ("data_ptr", "dtype", "device_type", "device_index", "dim", "sizes", "strides")
_SYMBOLS = {
    **{name: f"aoti_torch_get_{name}" for name in _SHIM},
    "is_neg": "_ZN2at6native6is_negERKNS_6TensorE",
    "has_dispatch": "_ZN2at4impl19tensor_has_dispatchERKNS_6TensorE",
    "bump_version": "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE",
    "grad": "_ZNK3c1010TensorImpl4gradEv",
    "has_storage": "_ZNK3c1010TensorImpl11has_storageEv",
}


class Library:
    """The loaded kernels.

    Attributes:
        kernels: functions that are called without the GIL.
        torch: how the kernels read Python's tensors, or None if this torch cannot be read; tables are then
            made for each step.
        instruction_set: "AVX-512", "AVX2" or "baseline"; "SVE" or "NEON" on ARM.
        threads: "OpenMP", or "std::thread" where the library was built without OpenMP: each step of many
            elements then starts threads of its own.
    """

    def __init__(self, path: Path) -> None:
        address, size, integer = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
        self.kernels, with_gil = ctypes.CDLL(str(path)), ctypes.PyDLL(str(path))
        self.same_items, self.same_values = with_gil.cpu_same_items, with_gil.cpu_same_values
        for same in (self.same_items, self.same_values):
            same.restype, same.argtypes = size, [address, ctypes.py_object, address, size]
        self.python = Python.find()
        self.fingerprints, self.refresh = with_gil.cpu_fingerprints, with_gil.cpu_refresh
        self.fingerprints.restype = self.refresh.restype = size
        self.fingerprints.argtypes = [address, address, size, address]
        self.refresh.argtypes = [address] * 4
        self.bump_versions = with_gil.cpu_bump_versions
        self.bump_versions.argtypes = [address] * 2
        for name, arrays in {"cpu_square_sums": 5, "cpu_column_square_sums": 4}.items():
            arguments = [integer, ctypes.c_int64, *[address] * arrays, integer]
            getattr(self.kernels, name).argtypes = arguments
        total = self.kernels.cpu_total_square_sum
        total.restype = ctypes.c_double
        total.argtypes = [integer, ctypes.c_int64, address, ctypes.c_int64, address, integer]
        self.kernels.cpu_instruction_set.restype = ctypes.c_char_p
        self.kernels.cpu_threads.restype = ctypes.c_char_p
        self.instruction_set: str = self.kernels.cpu_instruction_set().decode()
        self.threads: str = self.kernels.cpu_threads().decode()
        self.torch = Torch.find(self.python)

    def step(self, rule: str) -> Any:
        """Return the C function that makes a step of a rule; AttributeError if there is none."""
        function = getattr(self.kernels, f"cpu_{rule}")
        address = ctypes.c_void_p
        arguments = [address, ctypes.c_int64, *[address] * 3, ctypes.c_double, ctypes.c_int]
        function.restype, function.argtypes = None, arguments
        return function


class Python(ctypes.Structure):
    """`Python` of csrc/tensors.h: functions of the running Python."""

    _FUNCTIONS = ("PyList_Size", "PyList_GetItem", "PyDict_Size", "PyDict_Next")
    _fields_ = tuple((name, ctypes.c_void_p) for name in _FUNCTIONS)

    @classmethod
    def find(cls) -> "Python":
        """Return them, in the order of `Python` in csrc/tensors.h."""
        return cls(
            *(ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p) for name in cls._FUNCTIONS)
        )


class Torch(ctypes.Structure):
    """`Torch` of csrc/tensors.h: functions of torch that describe a tensor, and where an object holds one."""

    _fields_ = (
        ("python", Python),
        ("handle", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in _SYMBOLS),
    )

    @classmethod
    def find(cls, python: Python) -> "Torch | None":
        """Return the functions of the loaded torch; None if one is missing or a tensor is not found."""
        folder = Path(torch.__file__).parent / "lib"  # Windows has other names for the C++ functions
        library = folder / ("libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so")
        if not library.exists():
            return None
        exported = ctypes.CDLL(str(library))
        functions = [getattr(exported, symbol, None) for symbol in _SYMBOLS.values()]
        # A tensor object holds its C++ tensor, one pointer, shortly after the header of every object.
        probes = [torch.empty(2, device="cpu"), torch.nn.Parameter(torch.empty((), device="cpu"))]
        header, word = object.__basicsize__, ctypes.sizeof(ctypes.c_void_p)
        for handle in range(header, header + 3 * word, word):
            if all(ctypes.c_void_p.from_address(id(x) + handle).value == x._cdata for x in probes):
                addresses = [ctypes.cast(f, ctypes.c_void_p).value for f in functions if f is not None]
                return cls(python, handle, *addresses) if len(addresses) == len(functions) else None
        return None


@functools.cache
def load() -> tuple[Library | None, str]:
    """Return the library and "", or None and the reason why there is none."""
    found = sorted(Path(__file__).parents[1].glob("_cpu.*"))
    if not found:
        return None, (
            "the CPU kernels were not built: install a C++ compiler, then this package again "
            "(pip install -v shows what a compiler said)"
        )
    try:
        return Library(found[0]), ""
    except OSError as error:
        if "GOMP" not in str(error) and "omp_" not in str(error):  # an old libc, another machine, damage
            return None, f"{found[0].name} could not be loaded: {error}"
    try:  # this torch hides its OpenMP runtime: use the system's
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
        return Library(found[0]), ""
    except OSError as error:
        return None, f"no OpenMP runtime for {found[0].name}: {error}"


def why_not(rules: Iterable[FusedRule]) -> str:
    """Return why the CPU cannot run the kernels of these rules; "" if it can."""
    library, reason = load()
    if library is None:
        return reason
    missing = [rule.name for rule in rules if not hasattr(library.kernels, f"cpu_{rule.name}")]
    if not missing:
        return ""
    return (
        f"the CPU kernels were built without the rule {missing[0]!r} (the list in csrc/rules.h): "
        "install this package again"
    )


class Members:
    """The objects in a list, or the values of a dict, for a fast check that they are still the same."""

    def __init__(self, container: list[Any] | dict[Any, Any]) -> None:
        self._kept = list(container.values() if isinstance(container, dict) else container)
        self._ids = (ctypes.c_void_p * len(self._kept))(*map(id, self._kept))

    def unchanged(self, container: list[Any] | dict[Any, Any]) -> bool:
        """Return whether the container still holds the same objects; False without a library."""
        library, _ = load()
        if library is None:
            return False
        same = library.same_values if isinstance(container, dict) else library.same_items
        return bool(same(ctypes.byref(library.python), container, self._ids, len(self._kept)))


def kinds(p: Tensor, storage: Storage) -> Kinds:
    """Return how a parameter (a plain local tensor of any shape) and its states are stored."""
    return Kinds(PARAMETER[p.dtype], STATE[storage.state], ROUNDING[storage.rounding], storage.taken)


def square_sum(tensors: Sequence[Tensor]) -> float:
    """Return the sum of the squares of dense CPU tensors of one dtype, of any shapes, added up in float64.

    Raises:
        RuntimeError: without the compiled kernels.
    """
    library, reason = load()
    if library is None:
        raise RuntimeError(reason)
    addresses = (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))
    ends = (ctypes.c_int64 * len(tensors))(*itertools.accumulate(x.numel() for x in tensors))
    numbers = PARAMETER[tensors[0].dtype], len(tensors), addresses, 1, ends
    return float(library.kernels.cpu_total_square_sum(*numbers, torch.get_num_threads()))


# The first columns of a table; the states and then their scales follow.
COLUMNS = (
    *("param", "grad", "step", "rest", "previous", "previous_scale"),
    *("rows", "columns", "length", "decay", "block_sums", "moments"),
)


class Factors(NamedTuple):
    """The factors of one tensor: rows[i // length] * columns[i % length] for element i in memory order.

    rows is [elements / length], columns [length] and decay [1], in the dtype of the arithmetic. None means
    1 for rows and columns, and 0 for decay.
    """

    rows: Tensor | None
    columns: Tensor | None
    length: int
    decay: Tensor | None = None


class _Held(ctypes.Structure):
    """`Held` of csrc/tensors.h."""

    _fields_ = (
        *(("object", ctypes.c_void_p), ("column", ctypes.c_int64)),
        *(("fingerprint", ctypes.c_uint64), ("impl", ctypes.c_void_p)),
    )


class _Record(ctypes.Structure):
    """`Record` of csrc/tensors.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("params", "states", "fingerprints", "ends", "held")),
        *((name, ctypes.c_int64) for name in ("rows", "width", "read_only")),
    )


class Table:
    """The addresses that a fused step works on, one row per tensor: `COLUMNS`, the states, their scales.

    A table is made once, from rows that keep the contract (contract.py), and reused while no
    tensor changes, which `refresh` verifies in C.

    Args:
        rule: the fused rule to apply.
        kinds: how the tensors are stored.
        params, grads: tensors of any shape, of one dtype and device; a gradient has its parameter's shape.
        states: per parameter the state dict, as `adan_optim.engine.storage.Storage` makes it.
        factors: per parameter, for a rule that has them.
        block_sums: per parameter [blocks of 256 elements, rule.sums], in the dtype of the arithmetic, for a
            rule that has them.
        others: names of further states, which the kernels do not read, but which must not be replaced.

    Raises:
        RuntimeError: for a row that breaks the contract.
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
        others: Sequence[str] = (),
    ) -> None:
        self._library, _ = load()
        self.rows, self._kinds, self._states = len(params), kinds, states
        self.makes_factors = bool(rule.moments)
        rest = RESTS.get(ROUNDINGS[kinds.rounding])
        names = ("step", rest.name if rest else "", "pre_grad", "pre_grad_scale")
        ours = ("rows", "columns", "length", "decay", "block_sums")  # not states of the optimizer
        stored = (*rule.states, *(f"{name}_scale" for name in rule.states))
        columns = ("param", "grad", *names, *ours, rule.moments, *stored)
        self._width = len(columns)
        kept_as = STATE_DTYPE[kinds.state], rest, kinds.taken
        addresses = []
        for i, (p, g, state) in enumerate(zip(params, grads, states, strict=True)):
            check_row(rule, *kept_as, p, g, state)
            rows, cols, length, decay = factors[i] if factors else Factors(None, None, 1)
            sums = block_sums[i] if block_sums else None
            row = [p, g, *map(state.get, names), rows, cols, max(length, 1), decay, sums]
            row += map(state.get, (rule.moments, *stored))
            addresses += [x.data_ptr() if isinstance(x, Tensor) else x or 0 for x in row]
        self._table = (ctypes.c_void_p * len(addresses))(*addresses)
        self._ends = (ctypes.c_int64 * self.rows)(*itertools.accumulate(p.numel() for p in params))
        column = {name: j for j, name in enumerate(columns) if name not in ("param", "grad", *ours)}
        column = dict.fromkeys(others, -1) | column
        self._record_tensors(params, states, column)
        self._kept = (params, factors, block_sums)  # keeps alive what C reads

    def _record_tensors(
        self, params: list[Tensor], states: list[dict[str, Any]], column: dict[str, int]
    ) -> None:
        """Record what `refresh` compares with; foreign values in the state dicts may change freely."""
        entries = [(name, x) for state in states for name, x in state.items()]
        self._objects = [x for name, x in entries if name in column]
        prints = iter(self._fingerprints_of(self._objects))
        self._held = (_Held * len(entries))(
            *(
                _Held(id(x), column[n], next(prints), x._cdata) if n in column else _Held(None, -1, 0, None)
                for n, x in entries
            )
        )
        taken = "pre_grad" if self._kinds.taken else None
        self._pre_grad = [i for i, (name, _) in enumerate(entries) if name == taken]
        self._fingerprints = self._fingerprints_of(params)
        per_row = (ctypes.c_int64 * self.rows)(*itertools.accumulate(map(len, states)))
        ids = [(ctypes.c_void_p * len(some))(*map(id, some)) for some in (params, states)]
        arrays = (*ids, self._fingerprints, per_row, self._held)
        sizes = (self.rows, self._width, COLUMNS.index("previous"))
        self._record = _Record(*map(ctypes.addressof, arrays), *sizes)
        self._arrays = arrays

    def _fingerprints_of(self, tensors: Sequence[Tensor]) -> Any:
        count = len(tensors)
        prints = (ctypes.c_uint64 * count)()
        if self._library is not None and self._library.torch is not None:
            ids = (ctypes.c_void_p * count)(*map(id, tensors))
            done = self._library.fingerprints(ctypes.byref(self._library.torch), ids, count, prints)
            assert done == count, "a tensor of a table cannot be read"
        return prints

    def refresh(self, grads: Sequence[Tensor] = ()) -> bool:
        """Read the current gradients; return False if a new table has to be made.

        It also raises the versions of parameters and states, as torch's in-place operations do.

        Args:
            grads: per parameter one of its shape; none if they are the parameters' own.
        """
        library = self._library
        if library is None or library.torch is None:
            return False
        given = (ctypes.c_void_p * self.rows)(*map(id, grads)) if grads else None
        record = ctypes.byref(self._record)
        return bool(self.rows == library.refresh(ctypes.byref(library.torch), record, self._table, given))

    def hold_gradients(self) -> None:
        """Record the tensors that are now the states `pre_grad`: the gradients of this step."""
        for at, p, state in zip(self._pre_grad, self._fingerprints, self._states, strict=True):
            x = state["pre_grad"]
            self._held[at] = _Held(id(x), COLUMNS.index("previous"), p, x._cdata)

    def bump_versions(self) -> None:
        """Tell autograd that a step changes parameters and states; for a step without `refresh`."""
        library = self._library
        if (
            library is None
            or library.torch is None
            or not library.bump_versions(ctypes.byref(library.torch), ctypes.byref(self._record))
        ):
            for x in (*self._kept[0], *self._objects):  # torch 2.4 takes no list
                torch.autograd.graph.increment_version(x)

    def step(
        self,
        hyper: Sequence[float],
        factor: float,
        scale: Tensor | None,
        *,
        lr: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """Make one step; the step counts go up by one.

        Args:
            hyper: the numbers of the rule's Hyper (csrc/rules.h), in its order.
            factor, scale: their product multiplies every gradient: the sign for maximize, and clipping and
                unscaling, if any. scale has one element.
            lr: on a GPU only, the rule's `device_numbers`, by default lr alone: replaces the first of hyper.
            found_inf: one element, on a GPU only: unless it is zero, nothing is changed.
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
        word = ctypes.sizeof(ctypes.c_void_p)
        self._grads = ctypes.addressof(self._table) + word * COLUMNS.index("grad")

    def square_sum(self) -> float:
        """Return the sum of the squares of all gradients, added up in float64."""
        assert self._library is not None
        tensors = self._kinds.parameter, self.rows, self._grads, self._width, self._ends
        return float(self._library.kernels.cpu_total_square_sum(*tensors, torch.get_num_threads()))

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
