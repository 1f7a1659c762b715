"""A device that does not exist: cuda-bindings' driver for the host side of the CUDA backend, on any machine.

Modules are PTX, which the interpreter executes on CPU tensors; streams are numbers. Functions can be made to
fail, as drivers do.
"""

import contextlib
import ctypes
import functools
from types import SimpleNamespace

import pytest
import torch
from ptx import Launch, Memory, Module

from optim.engine import cuda


@functools.cache
def _module(image):
    return Module(image.decode().rstrip("\0"))


class StandIn:
    """What `cuda.bindings.driver` offers to optim/engine/cuda.py.

    Attributes:
        tensors: gives (name, tensor) of all that a launch may touch, besides the launcher's own memory.
        launches: executed, in order, with their stream.
        failing: results by function, e.g. {"cuLaunchKernel": "CUDA_ERROR_LAUNCH_FAILED"}.
        stream, capturing: torch's current stream there, and whether it is being captured.
        calls: names of the functions called.
    """

    def __init__(self, tensors=lambda: ()):
        self.tensors, self.allocated = tensors, []
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
            "current_stream": lambda: SimpleNamespace(cuda_stream=self.stream),
            "is_current_stream_capturing": lambda: self.capturing,
        }.items():
            monkeypatch.setattr(torch.cuda, name, double)
        monkeypatch.setattr(cuda.Kernels, "empty", lambda _, words: self.allocate(words))
        monkeypatch.setattr(
            cuda, "cached_kernels", lambda lines, arch: cuda.compile_kernels(lines, arch, "PTX")
        )
        for cached in (cuda.why_not, cuda.load_kernels):
            cached.cache_clear()
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
        regions = [
            (x.data_ptr(), x.nbytes, name)
            for name, x in [*self.tensors(), *(("work", x) for x in self.allocated)]
        ]
        self.launches.append((stream, Launch(module, name, bx, tx, arguments, Memory(regions))))
        return ()
