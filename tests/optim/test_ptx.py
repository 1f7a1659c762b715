"""What NVRTC makes of the CUDA kernels, executed without a GPU (see ptx/), bit for bit as the CPU kernels.

Betas are powers of two, whose powers are exact: only `pow` may differ.
"""

import ctypes
import re

import harness
import pytest
import torch
from ptx import Fault, Launch, Memory, Module
from standin import StandIn
from tables import (
    FIRST,
    OPTIMIZER,
    RULES,
    SIZES,
    all_kinds,
    assert_same,
    hyper_of,
    make,
    snapshot,
    step,
)

import adan_optim
from adan_optim.engine import cuda, native, storage
from benchmarks import cuda_model

pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC comes with the CUDA builds of torch")

OPTIONS = dict(lr=0.07, eps=0.01, weight_decay=0.4)
BETAS = (0.5, 0.25, 0.125)
STATE = {number: name for name, number in native.STATE.items()}
FEW = [0, 3, 257, 8192 + 256, 0]  # an empty one, a part of a tile, one aligned and one not, two chunks


def options_of(name):
    optimizer = OPTIMIZER[name]
    known, betas = harness.options_of(optimizer), BETAS[: adan_optim.CARDS[optimizer].betas]
    own = {key: value for key, value in OPTIONS.items() if key in known}
    return {**own, "betas": betas} if betas else own


@pytest.fixture
def device(monkeypatch):
    return StandIn().install(monkeypatch)


def instances(name):
    """The kinds of tensors that kernels of their own are made for, by the kernels' name."""
    found = {}
    for kinds in all_kinds(RULES[name]):
        found.setdefault(cuda.instance(RULES[name], kinds)[0], kinds)
    return found


def tensors_of(tensors, *numbers):
    """The tensors of `make` apart from each other, so that none is read past its end."""
    parts = [(name, view) for name, arena in tensors.arenas.items() for view in arena.views]
    return [*parts, *(("number", x) for x in numbers)]


def run(name, kinds, sizes, device, steps=2):
    """Steps of an interpreted kernel and of the CPU's, compared; gives the launches."""
    rule, hyper = RULES[name], hyper_of(name, **options_of(name))
    ours, expected = make(rule, kinds, sizes), make(rule, kinds, sizes)
    scales = [torch.tensor(0.3 + i) for i in range(steps)]
    device.tensors = lambda: tensors_of(ours, *scales)
    for i, scale in enumerate(scales):
        step(ours, cuda.CudaTable, hyper, -1.0, scale)
        step(expected, native.CpuTable, hyper, -1.0, scale)
        assert_same(snapshot(ours), snapshot(expected), f"{kinds}, step {i + 1}")
    return [launch for _, launch in device.launches]


# ---- the kernels


def tiers():
    """The mark of each kernel that does not belong to `make test-cuda-static`.

    Of some rules, kernels that together have every kind of parameter, state, rounding and gradient: of each
    rule alone in `make test-optim`, of all of them in `make test`.
    """
    marks, seen = {}, set()
    for name in dict.fromkeys(["adan", *FIRST.values(), "lamb"]):  # the last does not count steps
        own = set()
        for kernel, kinds in instances(name).items():
            kinds = set(enumerate(kinds))
            if not own or kinds - seen:
                marks[kernel] = ()
            elif kinds - own:
                marks[kernel] = pytest.mark.exhaustive
            own |= kinds
            seen |= kinds
    return marks


TIERS = tiers()
each_kernel = pytest.mark.parametrize(
    ("name", "kernel"),
    [
        pytest.param(name, kernel, marks=TIERS.get(kernel, pytest.mark.static))
        for name in RULES
        for kernel in instances(name)
    ],
)


@each_kernel
def test_kernels_do_what_the_cpu_kernels_do(name, kernel, device):
    run(name, instances(name)[kernel], FEW, device)


@pytest.mark.parametrize("kinds", [(2, 3, 1, False), (2, 0, 2, True), (3, 2, 0, False)], ids=str)
def test_kernels_of_a_card_without_bfloat16(kinds, device, monkeypatch):
    """For which the sources have other code: conversions, and the largest number of a warp."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    run("adan", native.Kinds(*kinds), FEW, device)


@pytest.mark.static
@each_kernel
def test_kernels_on_awkward_sizes(name, kernel, device):
    run(name, instances(name)[kernel], SIZES, device)


@each_kernel
def test_every_array_is_read_and_written_once_in_wide_accesses(name, kernel, device):
    """What the bandwidth is spent on, counted: the byte model of docs/optim.md."""
    rule, kinds = RULES[name], instances(name)[kernel]
    size = 2 * cuda.CHUNK
    launch = run(name, kinds, [size], device)[-1]
    tensors = make(rule, kinds, [size])
    states = [key for key in rule.states if not (kinds.taken and key == rule.previous)]
    read = ["param"] * ("param" not in rule.unread) + ["odd"] * ("grad" not in rule.unread)
    read += ["even"] * kinds.taken + states
    written = ["param"] * ("param" not in rule.unwritten)
    written += [key for key in states if key in rule.written_states]
    rests = sorted(storage.REST_NAMES & tensors.arenas.keys()) * ("param" in read)
    read, written = [*read, *rests], [*written, *rests]
    itemsize = {key: tensors.arenas[key].memory.itemsize for key in read}
    vector = 16 // max(itemsize.values())
    expected = {("ld", key, vector * itemsize[key]): size // vector for key in read}
    expected |= {("st", key, vector * itemsize[key]): size // vector for key in written}
    moved = {access: n for access, n in launch.moved.items() if access[1] in read}
    assert moved == expected
    plain = kinds._replace(rounding=native.ROUNDING["nearest"], taken=False)
    if kinds == plain and kinds.parameter != native.PARAMETER[torch.float64]:
        model = cuda_model.bytes_moved(rule, tensors.params[0].dtype, STATE[kinds.state])
        assert sum(n * width for (_, _, width), n in moved.items()) / size == int(model)


@pytest.mark.parametrize("name", ["adan", "lamb_moments", "adafactor"])
def test_numbers_on_the_device(name, device):
    """Scale and learning rate as tensors of either type; a step that is left out changes nothing."""
    kinds = next(iter(instances(name).values()))
    rule, hyper = RULES[name], hyper_of(name, **options_of(name))
    ours, expected = make(rule, kinds, FEW), make(rule, kinds, FEW)
    numbers = {
        dtype: [torch.tensor(x, dtype=dtype) for x in (0.25, 0.5, 0.0, 1.0)]
        for dtype in (torch.float32, torch.float64)
    }
    device.tensors = lambda: tensors_of(ours, *numbers[torch.float32], *numbers[torch.float64])
    for lr, scale, finite, _ in numbers.values():
        step(ours, cuda.CudaTable, (-1.0, *hyper[1:]), 2.0, scale, lr=lr, found_inf=finite)
        step(expected, native.CpuTable, (0.25, *hyper[1:]), 2.0, scale)
        assert_same(snapshot(ours), snapshot(expected))
    before = snapshot(ours)
    for *_, overflow in numbers.values():
        step(ours, cuda.CudaTable, hyper, found_inf=overflow)
    after = snapshot(ours)
    assert_same(*({key: x for key, x in s.items() if key not in ("even", "odd")} for s in (after, before)))


def test_taken_gradients_of_a_step_that_is_left_out(device):
    """The memory of a gradient that becomes the previous one is given the previous one's values."""
    name, kinds = "adan", native.Kinds(0, 1, 0, True)
    rule, hyper = RULES[name], hyper_of(name, **options_of(name))
    ours, overflow = make(rule, kinds, FEW), torch.tensor(1.0)
    device.tensors = lambda: tensors_of(ours, overflow)
    step(ours, cuda.CudaTable, hyper)
    previous = [view.clone() for view in ours.arenas["even"].views]
    step(ours, cuda.CudaTable, hyper, found_inf=overflow)
    for view, old in zip(ours.arenas["odd"].views, previous, strict=True):
        assert torch.equal(view, old)


def test_nothing_past_the_end_is_added_up(device):
    """Without eps it would be 0 / 0."""
    rule, kinds = RULES["lamb_moments"], next(iter(instances("lamb_moments").values()))
    tensors = make(rule, kinds, [3])
    device.tensors = lambda: tensors_of(tensors)
    step(tensors, cuda.CudaTable, hyper_of("lamb_moments", **options_of("lamb_moments") | {"eps": 0.0}))
    assert tensors.arenas["block_sums"].views[0].isfinite().all()


@pytest.mark.parametrize("count", [1, 5, 300])
def test_the_row_of_every_chunk_is_found(count, device):
    """In tables shorter and longer than a block has threads, and where tensors have no elements."""
    name, kinds = "lion", native.Kinds(0, 1, 0, False)
    sizes = [(i * 7) % 5 for i in range(count - 1)] + [cuda.CHUNK + 1]
    run(name, kinds, sizes, device, steps=1)


@pytest.mark.parametrize("name", [name for name in RULES if name in ("adan", "adamw", "lamb_moments")])
def test_powers_of_any_betas(name, device):
    """`pow` of CUDA, whose code NVRTC puts into the kernel, agrees with the host's to the last places."""
    kinds = next(iter(instances(name).values()))
    rule, betas = RULES[name], (0.98, 0.92, 0.99)[: len(options_of(name)["betas"])]
    hyper = hyper_of(name, **options_of(name) | {"betas": betas})
    ours, expected = make(rule, kinds, [300]), make(rule, kinds, [300])
    device.tensors = lambda: tensors_of(ours)
    for _ in range(5):
        step(ours, cuda.CudaTable, hyper)
        step(expected, native.CpuTable, hyper)
    for key, arena in ours.arenas.items():
        torch.testing.assert_close(arena.memory, expected.arenas[key].memory, rtol=1e-6, atol=1e-7)


# ---- the interpreter


HEADER = ".version 9.0\n.target sm_90\n.address_size 64\n"
KERNEL = """.entry k(.param .u64 k_param_0)
.maxntid 64, 1, 1
{{ .reg .pred %p<9>; .reg .b32 %r<9>; .reg .f32 %f<9>; .reg .b64 %rd<9>; .shared .align 8 .b8 s[256];
ld.param.u64 %rd1, [k_param_0]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2;
{body}
ret; }}"""


def execute(body, threads=64):
    """A kernel of 64 threads on 64 float32 numbers 0..63; %rd3 is the address of a thread's own."""
    x = torch.arange(64, dtype=torch.float32)
    memory = Memory([(x.data_ptr(), x.nbytes, "x")])
    Launch(
        Module(HEADER + KERNEL.format(body=body)), "k", 1, threads, [ctypes.c_uint64(x.data_ptr())], memory
    )
    return x


def test_branches_meet_again():
    body = """ld.global.f32 %f1, [%rd3]; setp.lt.u32 %p1, %r1, 10; @%p1 bra $LESS;
    add.rn.f32 %f1, %f1, 0f3F800000; bra $END;
    $LESS: mul.rn.f32 %f1, %f1, 0f40000000;
    $END: bar.sync 0; st.global.f32 [%rd3], %f1;"""
    expected = [2.0 * i if i < 10 else i + 1.0 for i in range(64)]
    assert execute(body).tolist() == expected


def test_a_shuffle_takes_from_the_lane_across():
    body = """ld.global.u32 %r2, [%rd3]; mov.b32 %r3, 31; mov.b32 %r4, -1; mov.b32 %r5, 1;
    shfl.sync.bfly.b32 %r6|%p1, %r2, %r5, %r3, %r4; st.global.u32 [%rd3], %r6;"""
    assert execute(body).tolist() == [float(i ^ 1) for i in range(64)]


def test_lanes_exchange_numbers():
    body = """mov.b32 %r3, 31; mov.b32 %r4, -1; mov.b32 %r5, 3; add.u32 %r2, %r1, 100;
    redux.sync.max.u32 %r6, %r2, %r4; shfl.sync.idx.b32 %r7|%p1, %r1, %r5, %r3, %r4;
    add.u32 %r6, %r6, %r7; cvt.rn.f32.u32 %f1, %r6; st.global.f32 [%rd3], %f1;"""
    assert execute(body).tolist() == [131.0 + 3] * 32 + [163.0 + 35] * 32


@pytest.mark.parametrize(
    ("to", "back", "nan"),
    [
        ("bf16", "shl.b32 %r3, %r2, 16; mov.b32 %f2, %r3", 0x7FFF0000),
        ("f16", "cvt.f32.f16 %f2, %h1", 0x7FFFFFFF),
    ],
)
def test_conversions_round_to_even(to, back, nan):
    """Ties, what becomes inf, subnormal numbers, zeros and NaN, as torch converts them."""
    tie = 1 + 2.0**-8 if to == "bf16" else 1 + 2.0**-11
    given = [tie, tie + 2.0**-20, 3 * tie, -tie, 3.4e38, 65520.0, 65519.0, 1e-7, 2.0**-25, 1e-40, -0.0, 0.0]
    given += [float("inf"), float("-inf")]
    x = torch.tensor([*given, float("nan")])
    module = KERNEL.format(
        body=f""".reg .b16 %h<2>; ld.global.f32 %f1, [%rd3]; cvt.rn.{to}.f32 %h1, %f1; cvt.u32.u16 %r2, %h1;
        {back}; st.global.f32 [%rd3], %f2;"""
    )
    expected = x.to(torch.bfloat16 if to == "bf16" else torch.float16).float()
    arguments = [ctypes.c_uint64(x.data_ptr())]
    Launch(Module(HEADER + module), "k", 1, len(x), arguments, Memory([(x.data_ptr(), x.nbytes, "x")]))
    harness.assert_same_bits([x[:-1]], [expected[:-1]])
    assert x.view(torch.int32)[-1] == nan


def test_a_shuffle_takes_from_one_lane():
    body = """ld.global.u32 %r2, [%rd3]; mov.b32 %r3, 31; mov.b32 %r4, -1; mov.b32 %r5, 3;
    shfl.sync.idx.b32 %r6|%p1, %r2, %r5, %r3, %r4; st.global.u32 [%rd3], %r6;"""
    assert execute(body).tolist() == [float(i // 32 * 32 + 3) for i in range(64)]


FAULTS = {
    "ld.global.f32 %f1, [%rd3+4];": "is in no tensor; before it lies x",
    "ld.global.f32 %f1, [%rd3+-4];": "is in no tensor; before it lies nothing",
    "ld.global.v2.f32 {%f1, %f2}, [%rd3];": "an access of 8 bytes is not aligned",
    "st.global.f32 [%rd3], %f1;": "%f1 is read before it is written",
    "st.global.u32 [%rd1], %r1;": "two threads store to",
    """setp.lt.u32 %p1, %r1, 32; @%p1 st.global.u32 [%rd3], %r1;
    ld.global.u32 %r2, [%rd1];""": "one warp loads what another stores",
    """setp.lt.u32 %p1, %r1, 9; @%p1 bra $A; bar.sync 0;
    $A: mov.u32 %r2, 0;""": "a barrier that not all threads",
    """mov.b32 %r3, 31; mov.b32 %r4, -1; setp.eq.u32 %p1, %r1, 0; @%p1 bra $A;
    shfl.sync.bfly.b32 %r6|%p1, %r1, %r1, %r3, %r4; $A: mov.u32 %r2, 0;""": "shfl without all lanes",
    """mov.b32 %r4, -1; setp.eq.u32 %p1, %r1, 0; @%p1 bra $A; redux.sync.max.u32 %r6, %r1, %r4;
    $A: mov.u32 %r2, 0;""": "redux without all lanes",
    "mov.f32 %f1, 0f3F800000; max.f32 %f1, %f1, %f1;": "drops NaN",
    "mov.f32 %f1, 0f3F800000; cvt.rz.bf16.f32 %r2, %f1;": "cvt.rz.bf16",
    "ld.shared.u32 %r2, [s];": "shared memory is read before it is written",
    """setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [s], %r1;
    ld.shared.u32 %r2, [s];""": "or without a barrier",
    """mul.lo.u32 %r2, %r1, 4; mov.u32 %r3, s; add.u32 %r2, %r2, %r3; st.shared.u32 [%r2], %r1; bar.sync 0;
    ld.shared.u32 %r4, [s+4]; st.shared.u32 [%r2], %r1;""": "that others may read only later",
    "st.shared.u32 [s], %r1;": "two threads store to one place in shared memory",
    "ld.shared.u32 %r2, [s+256];": "past the end of shared memory",
    "mov.f32 %f1, 0f3F800000; fma.rn.f32 %f1, %f1, %f1, %f1;": "contraction",
    "mov.f32 %f1, 0f3F800000; div.full.f32 %f1, %f1, %f1;": "not of IEEE 754",
    "mov.f32 %f1, 0f3F800000; add.ftz.f32 %f1, %f1, %f1;": "not of IEEE 754",
    "mov.u32 %r2, 0; div.u32 %r2, %r1, %r2;": "an integer is divided by zero",
    "vote.sync.all.pred %p1, %p2, -1;": "unknown instruction",
}


@pytest.mark.parametrize(("body", "message"), FAULTS.items(), ids=FAULTS.values())
def test_what_a_gpu_leaves_undefined_is_a_fault(body, message):
    with pytest.raises(Fault, match=message):
        execute(body)


def test_a_launch_that_does_not_fit_is_a_fault():
    with pytest.raises(Fault, match="blocks of 64 threads, not of 96"):
        execute("", threads=96)
    with pytest.raises(Fault, match=r"takes arguments of \[8\] bytes, not of \[\]"):
        Launch(Module(HEADER + KERNEL.format(body="")), "k", 1, 64, [], Memory([(16, 16, "x")]))


# ---- the host side, on the stand-in device


def test_two_launches_a_step_on_torchs_stream(device):
    """And addresses are copied to the device once for each stream; see test_cuda.py for graphs."""
    rule, kinds = RULES["lion"], native.Kinds(0, 1, 0, False)
    tensors, hyper = make(rule, kinds, [7] * 3), hyper_of("lion", **options_of("lion"))
    device.tensors = lambda: tensors_of(tensors)
    for stream in (1, 1, 2):
        device.stream = stream
        step(tensors, cuda.CudaTable, hyper)
    made = [(stream, launch.name.rpartition("_")[2]) for stream, launch in device.launches]
    first, later = ["upload", "prepare", "step"], ["prepare", "step"]
    assert made == [*((1, name) for name in [*first, *later]), *((2, name) for name in first)]


def test_a_thread_has_the_context_set_before_a_launch(device):
    kernels = cuda.load_kernels(RULES["lion"], native.Kinds(0, 1, 0, False), 0)
    device.context = None
    memory = device.allocate(1)
    words = (ctypes.c_uint64 * cuda.WORDS)(7)
    kernels.launch("upload", 1, 1, 1, ctypes.c_void_p(memory.data_ptr()), ctypes.c_int64(1), words)
    assert memory.tolist() == [7]
    assert device.context == "context 0"


def test_a_launch_that_fails_is_an_error(device):
    tensors = make(RULES["lion"], native.Kinds(0, 1, 0, False), [7])
    device.tensors, device.failing = (
        lambda: tensors_of(tensors),
        {"cuLaunchKernel": "CUDA_ERROR_LAUNCH_FAILED"},
    )
    with pytest.raises(RuntimeError, match="cuLaunchKernel: CUDA_ERROR_LAUNCH_FAILED"):
        step(tensors, cuda.CudaTable, hyper_of("lion", **options_of("lion")))


def test_a_step_after_memory_ran_out(device, monkeypatch):
    """Nothing was changed before, and the next step is the first."""
    rule, kinds = RULES["adamw"], native.Kinds(0, 1, 0, False)
    ours, expected, hyper = (
        make(rule, kinds, FEW),
        make(rule, kinds, FEW),
        hyper_of("adamw", **options_of("adamw")),
    )
    device.tensors = lambda: tensors_of(ours)

    def fail(words):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(device, "allocate", fail)
        with pytest.raises(torch.OutOfMemoryError):
            step(ours, cuda.CudaTable, hyper)
    step(ours, cuda.CudaTable, hyper)
    step(expected, native.CpuTable, hyper)
    assert_same(snapshot(ours), snapshot(expected))


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("cuModuleLoadData", "CUDA_ERROR_INVALID_IMAGE"),
        ("cuModuleLoadData", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
        ("cuDevicePrimaryCtxRetain", "CUDA_ERROR_OUT_OF_MEMORY"),
    ],
)
def test_what_cannot_be_loaded_is_said(device, function, error):
    """Then `fused=None` takes foreach, and `fused=True` says why not."""
    device.failing[function] = error
    assert re.search(f"loaded on device 0: .*{error}", cuda.why_not(0))
    assert cuda.why_not() == ""


def test_a_driver_older_than_nvrtc_is_named(device):
    device.version = 12080
    assert re.search(r"the driver is for CUDA 12\.8 and loads nothing that NVRTC 13\.\d", cuda.why_not(0))
    assert "update it, or install a torch for its CUDA" in cuda.why_not(0)


def test_nothing_is_said_of_a_device_that_works(device):
    assert cuda.why_not(0) == ""
    assert "cuModuleLoadData" in device.calls
