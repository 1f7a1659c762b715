"""A device that does not exist: cuda-bindings' driver for the host side of the CUDA backend, on any machine.

Modules are PTX, which the interpreter executes on CPU tensors, those for which `is_cuda` is set to be true.
Streams are numbers, and a launch is over when it returns; in a graph that is captured, launches are executed
by its replays alone, as on a GPU. Functions can be made to fail, as drivers do.
"""

import contextlib
import ctypes
import functools
import itertools

import pytest
import torch
from ptx import Launch, Memory, Module

from adan_optim.engine import cuda, cuda_sums

ANYTHING = (4096, 2**47 - 8192, "anything")


@functools.cache
def _compiled(lines, arch):
    return cuda.compile_kernels(lines, arch, "PTX")


@functools.cache
def _module(image):
    return Module(image.decode().rstrip("\0"))


class StandIn:
    """What `cuda.bindings.driver` offers to optim/adan_optim/engine/cuda.py.

    Attributes:
        tensors: gives (name, tensor) of all that a launch may touch, besides the launcher's own memory; None
            is any memory.
        launches: executed, in order, with their stream.
        failing: results by function, e.g. {"cuLaunchKernel": "CUDA_ERROR_LAUNCH_FAILED"}.
        stream, capturing: torch's current stream there, and whether it is being captured.
        calls: names of the functions called.
    """

    def __init__(self, tensors=lambda: ()):
        self.tensors, self.allocated, self.graph = tensors, [], None
        self.launches, self.calls, self.failing = [], [], {}
        self.stream, self.capturing, self.context, self.version = 1, False, None, 13000

    def install(self, monkeypatch):
        """Makes it device 0 of this process: sm_90, for torch and for optim."""
        driver = pytest.importorskip("cuda.bindings.driver")
        for name in vars(type(self)):
            if name.startswith("cu"):
                monkeypatch.setattr(driver, name, self._answering(name, driver.CUresult))
        for name, double in {
            "init": lambda: None,
            "is_available": lambda: True,
            "get_device_capability": lambda index: (9, 0),
            "device": lambda index: contextlib.nullcontext(),
            "current_stream": lambda: Stream(self, self.stream),
            "is_current_stream_capturing": lambda: self.capturing,
        }.items():
            monkeypatch.setattr(torch.cuda, name, double)
        monkeypatch.setattr(cuda.Kernels, "empty", lambda _, words: self.allocate(words))
        monkeypatch.setattr(cuda, "cached_kernels", _compiled)
        for cached in (cuda.why_not, cuda.load_kernels, cuda_sums.load_kernels):
            cached.cache_clear()
        return self

    def install_for_torch(self, monkeypatch):
        """Also as far as tests of whole optimizers ask torch for streams, graphs and where tensors are."""
        self.install(monkeypatch)
        self.tensors = None
        for name, double in {
            "is_initialized": lambda: True,
            "synchronize": lambda: None,
            "set_sync_debug_mode": lambda mode: None,
            "Stream": lambda: Stream(self),
            "stream": lambda stream: stream.as_current(),
            "CUDAGraph": lambda: Graph(self),
            "graph": lambda graph: graph.captured(),
        }.items():
            monkeypatch.setattr(torch.cuda, name, double)
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda x: getattr(x, "on_stand_in", False)))
        return self

    def _answering(self, name, results):
        def answer(*arguments):
            self.calls.append(name)
            error = getattr(results, self.failing.get(name, "CUDA_SUCCESS"))
            return (error, *(() if error.value else getattr(self, name)(*arguments)))

        answer.__name__ = name
        return answer

    def allocate(self, words):
        self.allocated.append(torch.empty(words, dtype=torch.int64))
        return self.allocated[-1]

    # ---- the driver's functions: what they return after the error code

    def cuDriverGetVersion(self):
        return (self.version,)

    def cuDeviceGet(self, index):
        return (index,)

    def cuDevicePrimaryCtxRetain(self, device):
        return (f"context {device}",)

    def cuCtxSetCurrent(self, context):
        self.context = context
        return ()

    def cuModuleLoadData(self, image):
        return (_module(bytes(image)),)

    def cuModuleGetFunction(self, module, name):
        module.functions[name.decode()]
        return ((module, name.decode()),)

    def cuLaunchKernel(self, function, bx, by, bz, tx, ty, tz, shared, stream, parameters, extra):
        module, name = function
        assert self.context is not None
        assert (by, bz, ty, tz, shared, extra) == (1, 1, 1, 1, 0, 0)
        places = module.functions[name].params.values()
        pointers = (ctypes.c_void_p * len(places)).from_address(parameters)
        arguments = [
            (ctypes.c_char * place.size).from_address(at) for at, place in zip(pointers, places, strict=True)
        ]
        launch = functools.partial(self._execute, stream, module, name, bx, tx, list(map(bytes, arguments)))
        if self.capturing and self.graph is not None:
            self.graph.launches.append(launch)
        else:
            launch()
        return ()

    def _execute(self, stream, module, name, blocks, threads, arguments):
        if self.tensors is None:
            regions = [ANYTHING]
        else:
            held = [*self.tensors(), *(("work", x) for x in self.allocated)]
            regions = [(x.data_ptr(), x.nbytes, name) for name, x in held]
        arguments = [(ctypes.c_char * len(given)).from_buffer_copy(given) for given in arguments]
        races = self.tensors is not None  # where it is about whole optimizers, launches are many
        launch = Launch(module, name, blocks, threads, arguments, Memory(regions), races=races)
        self.launches.append((stream, launch))


class Stream:
    """A stream of a stand-in, with a number of its own unless one is given."""

    numbers = itertools.count(2)

    def __init__(self, device, number=None):
        self.device, self.cuda_stream = device, next(self.numbers) if number is None else number

    def wait_stream(self, other):
        """Every launch has ended already."""

    @contextlib.contextmanager
    def as_current(self):
        before, self.device.stream = self.device.stream, self.cuda_stream
        try:
            yield
        finally:
            self.device.stream = before


class Graph:
    """A CUDA graph of a stand-in: the launches of its capture."""

    def __init__(self, device):
        self.device, self.launches = device, []

    @contextlib.contextmanager
    def captured(self):
        with Stream(self.device).as_current():  # as torch, on a stream of its own
            self.device.capturing, self.device.graph = True, self
            try:
                yield
            finally:
                self.device.capturing, self.device.graph = False, None

    def replay(self):
        for launch in self.launches:
            launch()
