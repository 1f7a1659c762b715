"""The CUDA kernels (csrc/cuda.cu): compiled at first use by NVRTC, kept on disk, launched on torch's stream.

Nothing here makes the host wait for the device, once the kernels are loaded.
"""

import ctypes
import functools
import hashlib
import itertools
import os
import re
import tempfile
from collections.abc import MutableMapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..card import FusedRule
from . import native

CHUNK, ROWS, WORDS, COMMON_BYTES = 8192, 240, 480, 256  # as in csrc/cuda.cu
GRAD, PREVIOUS = map(native.COLUMNS.index, ("grad", "previous"))

# Without contraction and with correctly rounded roots and quotients the arithmetic is that of the CPU.
OPTIONS = ("--std=c++17", "--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false")


@functools.cache
def why_not(index: int | None = None) -> str:
    """Why there are no CUDA kernels on this machine, or for the CUDA device `index`; empty if there are.

    Without an index this initialises no GPU. With one, a small kernel is compiled and loaded.
    """
    if torch.version.hip is not None:
        return "this torch is built for ROCm, and the kernels are CUDA's"
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    try:
        from cuda.bindings import nvrtc  # type: ignore[import-untyped]

        known = _call(nvrtc.nvrtcGetSupportedArchs)
    except ImportError:
        major = torch.version.cuda.split(".")[0]
        return f"the CUDA kernels need cuda-bindings: pip install 'cuda-bindings=={major}.*'"
    except Exception as error:  # whatever the search for the library raises
        return f"NVRTC, which compiles the CUDA kernels, could not be loaded: {error}"
    if index is None:
        return ""
    if (arch := _arch(index)) not in known:
        return f"the installed NVRTC knows no sm_{arch}, which device {index} is; install a newer torch"
    return _why_not_loaded(index)


def _why_not_loaded(index: int) -> str:
    """Why the device does not take what NVRTC compiles; empty if it does."""
    from cuda.bindings import driver, nvrtc

    try:
        version, of_driver = _call(nvrtc.nvrtcVersion), _call(driver.cuDriverGetVersion)
        if version[0] > of_driver // 1000:
            return (
                f"the driver is for CUDA {of_driver // 1000}.{of_driver % 1000 // 10} and loads nothing that "
                f"NVRTC {version[0]}.{version[1]} compiles: update it, or install a torch for its CUDA"
            )
        load_module(cached_kernels("", _arch(index)), index)
    except Exception as error:  # of NVRTC, its built-in headers or the driver, which raise what they like
        return f"the CUDA kernels cannot be compiled or loaded on device {index}: {error}"
    return ""


def _arch(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def _call(function: Any, *arguments: Any) -> Any:
    """Calls a function of cuda-bindings: its results, or the only one; RuntimeError for an error."""
    error, *results = function(*arguments)
    if error.value:
        raise RuntimeError(f"{function.__name__}: {error.name}")
    return results[0] if len(results) == 1 else results


# ---- compiling


@functools.cache
def sources() -> dict[str, str]:
    """The CUDA program and the headers it includes: text by name."""
    here = Path(__file__).parents[1]
    folder = next(path for path in (here / "_csrc", here.parents[1] / "csrc") if path.is_dir())
    names = ("cuda.cu", "table.h", "storage.h", "rules.h", "sums_order.h", "sums.cuh")
    return {name: (folder / name).read_text(encoding="utf-8") for name in names}


def instance(rule: FusedRule, kinds: native.Kinds) -> tuple[str, str]:
    """The name of the kernels for a rule and kinds of tensors, and the line of source for them."""
    parameter, state, rounding, taken = kinds
    if parameter == native.PARAMETER[torch.float64] or not rule.states:
        state = native.STATE[None]
    if parameter == native.PARAMETER[torch.float32] and state == native.STATE[None]:
        state = native.STATE["float32"]
    if parameter != native.PARAMETER[torch.bfloat16]:
        rounding = native.ROUNDING["nearest"]
    base, _, wrapper = rule.name.rpartition("_")
    if wrapper not in ("agreement", "cautious"):
        base, wrapper = rule.name, ""
    text, name = sources()["rules.h"], base.replace("_", "")
    found = re.search(rf"^struct ({name}) ", text, re.MULTILINE | re.IGNORECASE)
    if found is None:
        raise ValueError(f"csrc/rules.h has no rule {rule.name!r}")
    struct = f"{wrapper.capitalize()}<rules::{found[1]}>" if wrapper else found[1]
    name = f"{rule.name}_{parameter}_{state}_{rounding}_{taken:d}"
    return (
        name,
        f"KERNELS({name}, {struct}, {parameter}, {state}, {rounding}, {str(bool(taken)).lower()})\n",
    )


def compile_kernels(lines: str, arch: int, kind: str = "CUBIN", more: Sequence[str] = ()) -> bytes:
    """Compiles the kernels that `lines` of `instance` ask for, e.g. arch=90 for sm_90.

    Returns:
        A cubin, or with kind="PTX" the text that it was assembled from. `more` are further options of NVRTC.
    """
    program, *headers = sources().items()
    options = [f"--gpu-architecture=sm_{arch}", *OPTIONS, *more]
    try:
        return _compile(dict([(program[0], program[1] + lines), *headers]), options, kind)
    except RuntimeError as error:
        raise RuntimeError(f"NVRTC cannot compile the kernels for sm_{arch}:\n{error}") from None


def _compile(texts: dict[str, str], options: Sequence[str], kind: str) -> bytes:
    """Compiles the first of the texts, which includes the others by name; RuntimeError with the log."""
    from cuda.bindings import nvrtc

    (name, text), *headers = ((name.encode(), text.encode()) for name, text in texts.items())
    names, bodies = [list(column) for column in zip(*headers, strict=True)] or ([], [])
    handle = _call(nvrtc.nvrtcCreateProgram, text, name, len(headers), bodies, names)
    try:
        (error,) = nvrtc.nvrtcCompileProgram(handle, len(options), [option.encode() for option in options])
        if error.value:
            log = bytes(_call(nvrtc.nvrtcGetProgramLogSize, handle))
            _call(nvrtc.nvrtcGetProgramLog, handle, log)
            raise RuntimeError(log.decode().rstrip("\0"))
        image = bytes(_call(getattr(nvrtc, f"nvrtcGet{kind}Size"), handle))
        _call(getattr(nvrtc, f"nvrtcGet{kind}"), handle, image)
        return image
    finally:
        _call(nvrtc.nvrtcDestroyProgram, handle)


@functools.cache
def nvrtc_build() -> str:
    """NVRTC's exact build: versions that share a number make different code."""
    ptx = _compile({"nothing.cu": ""}, [], "PTX")
    return " ".join(line[2:].strip() for line in ptx.decode().splitlines() if line.startswith("// "))


def cache_folder() -> Path:
    """Where compiled kernels are kept; RuntimeError without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adan-optim"


def why_not_kept() -> str:
    """Return why compiled kernels cannot be kept for the next process; "" if they can."""
    try:
        folder = cache_folder()
    except RuntimeError as error:
        return f"every process compiles its kernels again: {error}"
    exists = next(path for path in (folder, *folder.parents) if path.exists())
    if exists.is_dir() and os.access(exists, os.W_OK):
        return ""
    return f"every process compiles its kernels again: {exists} cannot be written"


def cached_kernels(lines: str, arch: int) -> bytes:
    """The same from the disk, where it was compiled before.

    A file that cannot be read, written or trusted (each begins with the hash of the rest) costs a
    compilation and nothing else.
    """
    recipe = repr((sources(), lines, arch, OPTIONS, nvrtc_build()))
    name = f"{hashlib.sha256(recipe.encode()).hexdigest()[:32]}.cubin"
    path = None
    with suppress(OSError, RuntimeError):  # no home
        path = cache_folder() / name
        stored = path.read_bytes()
        if hashlib.sha256(stored[32:]).digest() == stored[:32]:
            return stored[32:]
    cubin = compile_kernels(lines, arch)
    if path is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                file = Path(folder) / name
                file.write_bytes(hashlib.sha256(cubin).digest() + cubin)
                file.replace(path)  # other processes see all of it or nothing
    return cubin


# ---- launching


def load_module(image: bytes, index: int) -> tuple[Any, Any]:
    """Loads a cubin on a CUDA device; the module, and the context that torch uses there."""
    from cuda.bindings import driver

    torch.cuda.init()  # type: ignore[no-untyped-call]
    with torch.cuda.device(index):
        context = _call(driver.cuDevicePrimaryCtxRetain, _call(driver.cuDeviceGet, index))
        _call(driver.cuCtxSetCurrent, context)
        return _call(driver.cuModuleLoadData, image), context


class Kernels:
    """Kernels of one name, loaded on one device: `upload` and those asked for.

    Args:
        name, line: as `instance` gives them.
        kernels: the functions NAME_kernel.
        index: of the CUDA device.
    """

    def __init__(self, name: str, line: str, kernels: Sequence[str], index: int) -> None:
        from cuda.bindings import driver

        if reason := why_not(index):
            raise RuntimeError(reason)
        self._launch, self._set_context = driver.cuLaunchKernel, driver.cuCtxSetCurrent
        self._index = index
        module, self._context = load_module(cached_kernels(line, _arch(index)), index)
        symbols = {"upload": "upload"} | {kernel: f"{name}_{kernel}" for kernel in kernels}
        with self.device():
            _call(self._set_context, self._context)
            self._functions = {
                kernel: _call(driver.cuModuleGetFunction, module, symbol.encode())
                for kernel, symbol in symbols.items()
            }

    def device(self) -> AbstractContextManager[Any]:
        """A context in which the device is torch's current one; the other methods are called inside it."""
        return torch.cuda.device(self._index)

    def stream(self) -> tuple[int, bool]:
        """torch's current stream, and whether it is being captured in a CUDA graph."""
        return torch.cuda.current_stream().cuda_stream, torch.cuda.is_current_stream_capturing()

    def empty(self, words: int) -> Tensor:
        """Memory on the device, of the current stream: [words], int64."""
        return torch.empty(words, dtype=torch.int64, device=f"cuda:{self._index}")

    def launch(self, kernel: str, stream: int, blocks: int, threads: int, *arguments: Any) -> None:
        """Launches a kernel; its arguments are ctypes objects and are copied before this returns."""
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        _call(self._set_context, self._context)  # a thread may not have one yet, whatever torch says
        _call(
            self._launch,
            self._functions[kernel],
            *(blocks, 1, 1),
            *(threads, 1, 1),
            0,
            stream,
            ctypes.addressof(pointers),
            0,
        )


@functools.cache
def load_kernels(rule: FusedRule, kinds: native.Kinds, index: int) -> Kernels:
    """The `Kernels` of a rule, loaded once."""
    return Kernels(*instance(rule, kinds), ("prepare", "step"), index)


def upload(kernels: Kernels, words: Sequence[int], stream: int, more: int = 0) -> Tensor:
    """Puts words into new device memory: [words + more], int64."""
    memory = kernels.empty(len(words) + more)
    for at in range(0, len(words), WORDS):
        some = words[at : at + WORDS]
        to = ctypes.c_void_p(memory.data_ptr() + 8 * at), ctypes.c_int64(len(some))
        kernels.launch("upload", stream, -(-WORDS // 256), 256, *to, (ctypes.c_uint64 * WORDS)(*some))
    return memory


class Work(ctypes.Structure):
    """`Work` of csrc/cuda.cu."""

    _fields_ = (("words", ctypes.c_void_p), ("rows", ctypes.c_int64))


class Number(ctypes.Structure):
    """`Number` of csrc/cuda.cu: the address of a one-element tensor."""

    _fields_ = (("at", ctypes.c_void_p), ("is_double", ctypes.c_int64))


# Memory that captured graphs use, and may as long as the first parameter of its table lives.
_in_graphs: MutableMapping[Tensor, list[Tensor]] = WeakTensorKeyDictionary()


class CudaTable(native.Table):
    """A table of tensors on one CUDA device, the step counts and scales among them.

    A step is two launches whatever the number of tensors: `prepare` counts the steps and makes what a
    tensor's elements have in common, `step` updates (it is one more `prepare` for each 240 tensors beyond
    the first). Only gradients may lie elsewhere at the next step, so their addresses go with the launch; all
    others are put into device memory once.

    That memory belongs to the stream that was current when it was made, as the allocator wants it; a step on
    another stream makes it again. A captured graph takes it along for good: the graph then has nothing but
    the two launches in it, if a step was made before the capture, and later steps cannot change what it
    works on.
    """

    def __init__(
        self,
        rule: FusedRule,
        kinds: native.Kinds,
        params: list[Tensor],
        *tensors: Any,
    ) -> None:
        super().__init__(rule, kinds, params, *tensors)
        self._first, self._device = params[0], params[0].device
        self._kernels = load_kernels(rule, kinds, self._device.index or 0)
        self._addresses = memoryview(self._table).cast("B").cast("Q")
        self._sizes = [p.numel() for p in params]
        self._ends_in_chunks = list(itertools.accumulate(-(-size // CHUNK) for size in self._sizes))
        self._gradients = memoryview(bytearray(2 * ROWS * 8)).cast("Q")  # `Gradients` of csrc/cuda.cu
        self._memory: Tensor | None = None
        self._stream = 0

    def _upload(self, stream: int) -> Tensor:
        """New device memory for `Work`, filled in as far as it stays as it is."""
        rows, width = self.rows, self._width
        columns = (self._addresses[column::width] for column in range(width))
        words = [*itertools.chain(*columns, self._sizes, self._ends_in_chunks)]
        return upload(self._kernels, words, stream, more=rows * COMMON_BYTES // 8)

    def _here(self, x: Tensor | None) -> Tensor | None:
        """A number as the kernels take it."""
        if x is None or (x.device == self._device and x.dtype in (torch.float32, torch.float64)):
            return x
        return x.to(self._device, torch.float64, non_blocking=True)

    def step(
        self,
        hyper: Sequence[float],
        factor: float,
        scale: Tensor | None,
        *,
        lr: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """Makes one step on the current stream.

        Args:
            hyper, factor, scale, lr: see `Table.step`; on any device.
            found_inf: if this is not zero, nothing changes. Gradients that are taken from the parameters
                are then given the values of the previous ones, whose place the caller gives them in any case.

        Raises:
            RuntimeError: under capture with taken gradients, which lie elsewhere at every step.
        """
        kernels, rows, width = self._kernels, self.rows, self._width
        numbers = [self._here(x) for x in (lr, scale, found_inf)]
        lr_, scale_, found_inf_ = (
            Number(None, 0) if x is None else Number(x.data_ptr(), x.dtype == torch.float64) for x in numbers
        )
        with kernels.device():
            stream, capturing = kernels.stream()
            if capturing and self._kinds.taken:
                raise RuntimeError("a CUDA graph cannot take gradients away from their parameters")
            if self._memory is None or (stream != self._stream and not capturing):
                self._memory, self._stream = self._upload(stream), stream
            work = Work(self._memory.data_ptr(), rows)
            if capturing:
                _in_graphs.setdefault(self._first, []).append(self._memory)
                self._memory = None
            for first in range(0, rows, ROWS):
                count = min(ROWS, rows - first)
                some = self._addresses[first * width : (first + count) * width]
                self._gradients[:count] = some[GRAD::width]
                self._gradients[ROWS : ROWS + count] = some[PREVIOUS::width]
                kernels.launch(
                    "prepare",
                    stream,
                    *(-(-count // 32), 32),
                    work,
                    ctypes.c_int64(first),
                    ctypes.c_int64(count),
                    (ctypes.c_double * len(hyper))(*hyper),
                    lr_,
                    ctypes.c_double(factor),
                    scale_,
                    found_inf_,
                    (ctypes.c_uint64 * len(self._gradients)).from_buffer(self._gradients),
                )
            if chunks := self._ends_in_chunks[-1]:
                kernels.launch("step", stream, chunks, 256, work, found_inf_)
        if self._kinds.taken:
            self._addresses[PREVIOUS::width] = self._addresses[GRAD::width]
