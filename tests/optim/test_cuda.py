"""The CUDA backend, as far as no GPU is needed: every kernel compiles for every card, and a program on the
host runs the kernels' own code with the arguments of adan_optim.engine.cuda, bit for bit as the CPU kernels.
"""

import contextlib
import ctypes
import functools
import gc
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import harness
import pytest
import torch
from tables import (
    OPTIMIZER,
    RULES,
    SIZES,
    all_kinds,
    assert_same,
    each_emulated_rule,
    each_rule,
    hyper_of,
    make,
    snapshot,
    step,
)
from torch.utils.weak import WeakTensorKeyDictionary

import adan_optim
from adan_optim.engine import cuda, native

HERE = Path(__file__).parent
OPTIONS = dict(lr=0.07, betas=(0.7, 0.6, 0.8), eps=0.01, weight_decay=0.4)


def options_of(name):
    """Those of OPTIONS that the optimizer of a rule has, with as many betas as it takes."""
    known = harness.options_of(OPTIMIZER[name])
    options = {**OPTIONS, "betas": OPTIONS["betas"][: adan_optim.CARDS[OPTIMIZER[name]].betas]}
    return {key: value for key, value in options.items() if key in known and value != ()}


def instances(name):
    """The names of all kernels of a rule, and the source that asks for them."""
    rule = RULES[name]
    return dict(cuda.instance(rule, kinds) for kinds in all_kinds(rule))


# ---- compiling


CARDS = (75, 80, 90, 100)  # the first has no bfloat16, and the sources have other code for it


def assert_compiles(wanted, arch):
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC comes with the CUDA builds of torch")
    cubin = cuda.compile_kernels("".join(wanted.values()), arch)
    assert cubin.startswith(b"\x7fELF")
    for kernel in wanted:
        assert f"{kernel}_prepare".encode() in cubin
        assert f"{kernel}_step".encode() in cubin


@each_rule
def test_every_kernel_compiles(name):
    """Four of each rule, for one of the cards in turn; test_cuda_budgets.py compiles all."""
    kernels = list(instances(name).items())
    kernels = kernels[:: max(1, len(kernels) // len(CARDS))][: len(CARDS)]
    for i, arch in enumerate(CARDS):
        if wanted := dict(kernels[i :: len(CARDS)]):
            assert_compiles(wanted, arch)


def test_a_source_that_does_not_compile_says_why():
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC comes with the CUDA builds of torch")
    with pytest.raises(RuntimeError, match=r"sm_90:\n.*no member \"Nonsense\""):
        cuda.compile_kernels("KERNELS(x, Nonsense, 0, 1, 0, false)\n", 90)


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """The folder of the cache, empty, and the list of what was compiled."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC comes with the CUDA builds of torch")
    calls = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        cuda, "compile_kernels", lambda *arguments: calls.append(arguments) or f"{arguments}".encode()
    )
    return tmp_path / "cache" / "adan-optim", calls


def test_kernels_are_kept_on_disk(compiled):
    folder, calls = compiled
    first = cuda.cached_kernels("a", 90)
    assert cuda.cached_kernels("a", 90) == first
    assert len(calls) == 1
    assert cuda.cached_kernels("a", 80) != first != cuda.cached_kernels("b", 90)
    assert [path.suffix for path in folder.iterdir()] == [".cubin"] * 3


def test_other_sources_are_other_kernels(compiled, monkeypatch):
    _, calls = compiled
    cuda.cached_kernels("a", 90)
    changed = {**cuda.sources(), "rules.h": cuda.sources()["rules.h"] + "\n"}
    monkeypatch.setattr(cuda, "sources", lambda: changed)
    cuda.cached_kernels("a", 90)
    assert len(calls) == 2


@pytest.mark.parametrize("damage", [lambda kept: kept[:-1], lambda kept: b"", lambda kept: kept[:-1] + b"?"])
def test_a_damaged_file_is_replaced(compiled, damage):
    folder, calls = compiled
    good = cuda.cached_kernels("a", 90)
    (file,) = folder.iterdir()
    kept = file.read_bytes()
    file.write_bytes(damage(kept))
    assert cuda.cached_kernels("a", 90) == good
    assert len(calls) == 2
    assert file.read_bytes() == kept


@pytest.mark.parametrize("folder", ["/dev/null", "/proc/nowhere"])
def test_without_a_folder_to_write_kernels_are_compiled(compiled, monkeypatch, folder):
    _, calls = compiled
    monkeypatch.setenv("XDG_CACHE_HOME", folder)
    assert cuda.cached_kernels("a", 90) == cuda.cached_kernels("a", 90)
    assert len(calls) == 2


@pytest.mark.slow
def test_processes_that_fill_the_cache_at_once(tmp_path):
    """They agree, and leave one whole file."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC comes with the CUDA builds of torch")
    line = cuda.instance(RULES["lion"], native.Kinds(0, 1, 0, False))[1]
    program = f"""import sys; from adan_optim.engine import cuda
sys.stdout.buffer.write(cuda.cached_kernels({line!r}, 90))"""
    here = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=here) for _ in range(4)
    ]
    images = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(images) == 1
    (file,) = (tmp_path / "adan-optim").iterdir()
    assert file.read_bytes()[32:] == images.pop()


def test_reasons_for_no_kernels(monkeypatch):
    ask = cuda.why_not.__wrapped__
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ask() == "there is no CUDA device" or torch.version.cuda is None
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "without CUDA" in ask()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "ROCm" in ask()
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    assert "pip install 'cuda-bindings==13.*'" in ask()


def test_a_card_that_nvrtc_does_not_know(monkeypatch):
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC comes with the CUDA builds of torch")
    ask = cuda.why_not.__wrapped__
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(cuda, "_why_not_loaded", lambda index: "")
    assert ask(0) == ""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (99, 0))
    assert "sm_990" in ask(0)


# ---- running, on the host


class Emulated:
    """`cuda.Kernels` of a program for the host, which also lists the launches and pretends to be captured."""

    def __init__(self, library, name):
        self.library, self.name, self.launches, self.now = library, name, [], (1, False)

    def device(self):
        return contextlib.nullcontext()

    def stream(self):
        return self.now

    def empty(self, words):
        return torch.empty(words, dtype=torch.int64)

    def launch(self, kernel, stream, blocks, threads, *arguments):
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        function = self.library[kernel if kernel == "upload" else f"{self.name}_{kernel}"]
        function(ctypes.c_int64(blocks), ctypes.c_int64(threads), pointers)
        assert sum(map(ctypes.sizeof, arguments)) <= 4096
        self.launches.append(kernel)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory, compile_once):
    """The library of a rule's emulated kernels, by its name; built when it is asked for."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("a C++ compiler is needed")
    folder = tmp_path_factory.mktemp("emulator")

    @functools.cache
    def library(name):
        source = folder / f"{name}.cpp"
        source.write_text('#include "emulator.cpp"\n' + "".join(instances(name).values()))
        flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing"]
        flags += [
            "-fsanitize=alignment",
            "-fsanitize-undefined-trap-on-error",
        ]  # as a GPU, which demands it
        include = [f"-I{HERE}", f"-I{HERE.parents[1] / 'csrc'}"]
        return ctypes.CDLL(str(compile_once([compiler, *flags, *include, str(source)], f"emulated_{name}")))

    return library


@pytest.fixture
def emulated(libraries, monkeypatch):
    """Tables on the CPU then take the emulated kernels; gives the `Emulated` of a rule and kinds."""
    if reason := native.load()[1]:
        pytest.skip(reason)
    made = {}

    def load_kernels(rule, kinds, index):
        name, _ = cuda.instance(rule, kinds)
        return made.setdefault(name, Emulated(libraries(rule.name), name))

    monkeypatch.setattr(cuda, "load_kernels", load_kernels)
    monkeypatch.setattr(cuda, "_in_graphs", WeakTensorKeyDictionary())
    return lambda rule, kinds: load_kernels(rule, kinds, 0)


@each_emulated_rule
def test_kernels_do_what_the_cpu_kernels_do(name, emulated):
    rule, hyper = RULES[name], hyper_of(name, **options_of(name))
    for kinds in all_kinds(rule):
        ours, expected = make(rule, kinds), make(rule, kinds)
        for i in range(2):
            step(ours, cuda.CudaTable, hyper, -1.0, torch.tensor(0.3 + i))
            step(expected, native.CpuTable, hyper, -1.0, torch.tensor(0.3 + i))
            assert_same(snapshot(ours), snapshot(expected), f"{kinds}, step {i + 1}")


@each_emulated_rule
def test_numbers_on_the_device(name, emulated):
    """Scale and learning rate as tensors of either type; steps that are left out change nothing."""
    rule, hyper = RULES[name], hyper_of(name, **options_of(name))
    sizes = [300, 0, 5, 70000]
    for kinds in all_kinds(rule):
        ours, expected = make(rule, kinds, sizes), make(rule, kinds, sizes)
        for dtype in (torch.float32, torch.float64, torch.float16):
            numbers = (0.25, 0.75)[: len(adan_optim.OPTIMIZERS[OPTIMIZER[name]].device_numbers)]
            lr, scale = torch.tensor(numbers, dtype=dtype), torch.tensor(0.5, dtype=dtype)
            finite, rest = torch.tensor(0.0), hyper[len(numbers) :]
            step(ours, cuda.CudaTable, (-1.0,) * len(numbers) + rest, 2.0, scale, lr=lr, found_inf=finite)
            step(expected, native.CpuTable, (*numbers, *rest), 2.0, scale)
        assert_same(snapshot(ours), snapshot(expected), f"{kinds}")
        before = snapshot(ours)
        previous = [state["pre_grad"].clone() for state in ours.states if kinds.taken]
        step(ours, cuda.CudaTable, hyper, found_inf=torch.tensor(1.0))
        after = snapshot(ours)
        for arena in ("even", "odd"):
            before.pop(arena)
        assert_same(after, before, f"{kinds}, left out")
        for state, old in zip(ours.states, previous, strict=False):
            assert torch.equal(state["pre_grad"], old)


def test_nothing_past_the_end_counts_for_a_maximum(emulated):
    """Codes past the end of a block are zeros, which an infinite scale would make NaN."""
    rule = RULES["adamw"]
    kinds = native.Kinds(0, native.STATE["int8"], 0, False)
    hyper = hyper_of("adamw", **options_of("adamw"))
    tensors = make(rule, kinds, [3])
    p, state = tensors.params[0], tensors.states[0]
    for value in (torch.inf, 1.0):
        p.grad = torch.full_like(p, value)
        cuda.CudaTable(rule, kinds, [p], [p.grad], [state]).step(hyper, 1.0, None)
    assert state["exp_avg_sq_scale"].tolist() == [torch.inf]


@each_emulated_rule
def test_launches(name, emulated):
    """Two launches a step, for any tensors; addresses are copied to the device once for each stream."""
    rule, hyper = RULES[name], hyper_of(name, **options_of(name))
    kinds = native.Kinds(0, 1, 0, False)
    kernels = emulated(rule, kinds)
    ours, expected = make(rule, kinds, [7] * 161), make(rule, kinds, [7] * 161)

    def launches(now=(1, False)):
        kernels.now = now
        kernels.launches.clear()
        step(ours, cuda.CudaTable, hyper)
        step(expected, native.CpuTable, hyper)
        assert_same(snapshot(ours), snapshot(expected))
        return kernels.launches

    uploads = ["upload"] * -(-161 * (len(native.COLUMNS) + 2 * len(rule.states) + 2) // cuda.WORDS)
    assert launches() == [*uploads, "prepare", "step"]
    assert launches() == ["prepare", "step"]
    assert launches((2, False)) == [*uploads, "prepare", "step"]
    assert launches((2, False)) == ["prepare", "step"]
    # a graph takes over what is on the device, whatever stream it is captured on
    assert launches((3, True)) == ["prepare", "step"]
    assert len(cuda._in_graphs[ours.params[0]]) == 1
    assert launches((2, False)) == [*uploads, "prepare", "step"]
    assert launches((3, True)) == ["prepare", "step"]
    assert launches((3, True)) == [*uploads, "prepare", "step"]
    assert len({memory.data_ptr() for memory in cuda._in_graphs[ours.params[0]]}) == 3


def test_memory_of_graphs_goes_with_the_parameters(emulated):
    """Nobody can replay a graph then."""
    rule, kinds = RULES["lion"], native.Kinds(0, 1, 0, False)
    tensors = make(rule, kinds, [7])
    emulated(rule, kinds).now = (1, True)
    step(tensors, cuda.CudaTable, hyper_of("lion", **options_of("lion")))
    assert len(cuda._in_graphs) == 1
    del tensors
    gc.collect()
    assert len(cuda._in_graphs) == 0


def test_many_tensors_and_none_with_elements(emulated):
    rule = RULES["adamw"]
    kinds, hyper = native.Kinds(0, 1, 0, False), hyper_of("adamw", **options_of("adamw"))
    for sizes, launches in (([3] * 241, ["prepare", "prepare", "step"]), ([0, 0], ["prepare"])):
        ours, expected = make(rule, kinds, sizes), make(rule, kinds, sizes)
        emulated(rule, kinds).launches.clear()
        for _ in range(2):
            step(ours, cuda.CudaTable, hyper)
            step(expected, native.CpuTable, hyper)
        assert_same(snapshot(ours), snapshot(expected))
        assert [kernel for kernel in emulated(rule, kinds).launches if kernel != "upload"] == 2 * launches


def test_a_graph_cannot_take_gradients(emulated):
    rule = RULES["adan"]
    kinds, hyper = native.Kinds(0, 1, 0, True), hyper_of("adan", **options_of("adan"))
    tensors = make(rule, kinds, [3])
    step(tensors, cuda.CudaTable, hyper)
    emulated(rule, kinds).now = (1, True)
    with pytest.raises(RuntimeError, match="graph cannot take gradients"):
        step(tensors, cuda.CudaTable, hyper)


def test_rows_are_found_in_tables_of_any_sizes(emulated):
    """The elements that are not zeros afterwards are those of the tensors, whichever are empty."""
    rule = RULES["adamw"]
    kinds, hyper = native.Kinds(1, 0, 0, False), hyper_of("adamw", **options_of("adamw"))
    for sizes in ([1], [0, 1], [1, 0], [0, 0, 1, 0, 0, 8193, 0], [8192, 8192], [8191, 0, 8193], SIZES[::-1]):
        tensors = make(rule, kinds, sizes)
        step(tensors, cuda.CudaTable, hyper)
        assert all((state["exp_avg_sq"] != 0).all() for state in tensors.states)


def test_more_elements_than_32_bits_count(emulated, libraries):
    """The last chunk of a tensor of 2^32 elements, in memory that exists only where it is touched."""
    rule, tail = RULES["adamw"], 5000
    size = 2**32 + tail
    kinds, hyper = native.Kinds(3, 0, 0, False), hyper_of("adamw", **options_of("adamw"))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    maps = [mmap.mmap(-1, 2 * size, flags=flags) for _ in range(4)]
    p, g, m, v = (torch.frombuffer(memory, dtype=torch.float16) for memory in maps)
    small = make(rule, kinds, [tail])
    values = torch.randn(2, tail, generator=torch.Generator().manual_seed(0)).half()
    p[-tail:], g[-tail:] = values
    small.params[0].copy_(values[0])
    first_block = ctypes.c_int64.in_dll(libraries(rule.name), "first_block")
    state = {"step": torch.zeros(()), "exp_avg": m, "exp_avg_sq": v}
    try:
        first_block.value = 2**32 // cuda.CHUNK
        cuda.CudaTable(rule, kinds, [p], [g], [state]).step(hyper, 1.0, None)
    finally:
        first_block.value = 0
    native.CpuTable(rule, kinds, small.params, [values[1]], small.states).step(hyper, 1.0, None)
    for ours, expected in (
        (p, small.params[0]),
        *((state[name], small.states[0][name]) for name in rule.states),
    ):
        assert torch.equal(ours[-tail:], expected)
        assert not ours[-tail - 1]
        assert not ours[: 2 * cuda.CHUNK].any()
