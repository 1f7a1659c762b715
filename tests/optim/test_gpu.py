"""The CUDA backend on a GPU: `make test-gpu`, which takes compute-sanitizer where there is one.

What the kernels compute is compared bit for bit with the CPU kernels, for betas whose powers are exact: both
are IEEE arithmetic in the same order, and only `pow` may differ.

Without a GPU, `make test-cuda-static` runs the same tests on a stand-in (standin.py), which executes what
NVRTC makes of the kernels on CPU tensors; those marked with `needs_card` are left out.
"""

import contextlib
import threading
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from harness import FUSED, KEPT, assert_same_bits, each_fused_name, kept_by, options_of, random, tensors_of
from standin import StandIn
from tables import OPTIMIZER, RULES, all_kinds, assert_same, each_rule, hyper_of, make, snapshot, step
from torch import nn

import adan_optim
from adan_optim.engine import cuda, native

HERE = not cuda.why_not()
NOT_HERE = native.load()[1] or ("" if find_spec("cuda") else "NVRTC comes with the CUDA builds of torch")
pytestmark = [
    pytest.mark.gpu if HERE else pytest.mark.static,
    pytest.mark.skipif(bool(NOT_HERE), reason=NOT_HERE),
]


def needs_card(reason):
    return pytest.mark.skipif(not HERE, reason=f"needs a GPU: {reason}")


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """The stand-in, where there is no GPU."""
    if not HERE:
        StandIn().install_for_torch(monkeypatch)


def put(x, device):
    """A tensor on a device, which may be the stand-in."""
    if HERE or device == "cpu":
        return x.to(device)
    x = x.clone()
    x.on_stand_in = True
    return x


EXACT = dict(lr=0.07, eps=0.01, weight_decay=0.4)
BETAS = (0.5, 0.25, 0.125)
WITH_FACTORS = [name for name in FUSED if any(rule.factors for rule in adan_optim.CARDS[name].fused_rules)]
each_capturable = pytest.mark.parametrize("name", [name for name in FUSED if name not in WITH_FACTORS])
SHAPES = [(3, 4), (), (0, 5), (257,), (100, 123), (70000,) if HERE else (8500,)]


@contextlib.contextmanager
def no_waiting():
    """Operations of torch that wait for the device are errors in here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def exact(name, **options):
    known = options_of(OPTIMIZER.get(name, name))
    own = {key: value for key, value in EXACT.items() if key in known}
    return {**own, **betas_of(name, *BETAS), **options}


def betas_of(name, *betas):
    count = adan_optim.CARDS[OPTIMIZER.get(name, name)].betas
    return {"betas": betas[:count]} if count else {}


def params_of(device="cuda", dtype=torch.float32, shapes=SHAPES):
    rng = np.random.default_rng(0)
    return [put(random(shape, rng, dtype), device).requires_grad_() for shape in shapes]


def set_grads(params, seed):
    """The same gradients on every device, in memory that stays where it is once there is some."""
    rng = np.random.default_rng(seed)
    for p in params:
        g = random(tuple(p.shape), rng, p.dtype)
        if p.grad is None:
            p.grad = g.to(p.device)
        else:
            p.grad.copy_(g)


def fused(name, device="cuda", dtype=torch.float32, shapes=SHAPES, **options):
    params = params_of(device, dtype, shapes)
    return adan_optim.OPTIMIZERS[name](params, **exact(name, fused=True, **options)), params


def shapes_of(name, options):
    """Those of SHAPES that the kernels of an optimizer update with these options."""
    if name == "adafactor" and "state_dtype" in options:  # whose vectors have a small second moment then
        return [shape for shape in SHAPES if len(shape) > 1]
    return SHAPES


def assert_same_optimizers(ours, expected):
    assert_same_bits(*([x.cpu() for x in tensors_of(optimizer)] for optimizer in (ours, expected)))


@needs_card("test_ptx.py does the same without one")
@each_rule
def test_kernels_do_what_the_cpu_kernels_do(name):
    rule, hyper = RULES[name], hyper_of(name, **exact(name))
    for kinds in all_kinds(rule):
        ours, expected = make(rule, kinds, device="cuda"), make(rule, kinds)
        for i in range(3):
            scale = torch.tensor(0.3 + i, device="cuda")
            step(ours, cuda.CudaTable, hyper, -1.0, scale)
            step(expected, native.CpuTable, hyper, -1.0, scale.cpu())
            assert_same(snapshot(ours), snapshot(expected), f"{kinds}, step {i + 1}")


@each_fused_name
@pytest.mark.parametrize("options", [dict(), dict(max_grad_norm=0.5), dict(maximize=True, max_grad_norm=2.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_optimizers_on_both_devices(name, options, dtype):
    betas = betas_of(name, 0.98, 0.92, 0.99)
    ours, p = fused(name, dtype=dtype, **options, **betas)
    expected, q = fused(name, "cpu", dtype, **options, **betas)
    for seed in range(5):
        set_grads(p, seed)
        set_grads(q, seed)
        with no_waiting() if seed and name not in WITH_FACTORS else contextlib.nullcontext():
            ours.step()
        expected.step()
    for optimizer, table in ((ours, cuda.CudaTable), (expected, native.CpuTable)):
        assert {type(batch.table) for batch in optimizer._plan.batches} == {table}
    tolerance = 1e3 * torch.finfo(dtype).eps
    for x, y in zip(tensors_of(ours), tensors_of(expected), strict=True):
        torch.testing.assert_close(x.cpu(), y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name in FUSED for case in kept_by(name, "fused")]
)
def test_every_way_to_keep_tensors(name, case):
    dtype, options = kept_by(name)[case]
    shapes = shapes_of(name, options)
    ours, p = fused(name, dtype=dtype, shapes=shapes, **options)
    expected, q = fused(name, "cpu", dtype, shapes, **options)
    for seed in range(3):
        set_grads(p, seed)
        set_grads(q, seed)
        ours.step()
        expected.step()
    if name not in WITH_FACTORS or not (HERE or name == "lamb"):
        assert_same_optimizers(ours, expected)
        return
    # torch's operations, and LAMB's sums in another order, round a few codes to a neighbour
    tolerance = 0.05 if "state_dtype" in options or dtype.itemsize < 4 else 1e3 * torch.finfo(dtype).eps
    for x, y in zip(p, q, strict=True):
        torch.testing.assert_close(x.cpu(), y, rtol=tolerance, atol=tolerance)


# ---- CUDA graphs


@each_capturable
@pytest.mark.parametrize(
    "case", ["f32", "f32_int8", "bf16_bfloat16_stochastic", "bf16_int8_kahan", "bf16_int8_split"]
)
def test_graph(name, case):
    """Replays between steps outside the graph, with gradients and learning rates from outside."""
    dtype, options = KEPT[case]
    lr = put(torch.tensor(0.07), "cuda")
    ours, p = fused(name, dtype=dtype, capturable=True, **options | dict(lr=lr))
    expected, q = fused(name, dtype=dtype, **options | dict(lr=lr))
    graph = torch.cuda.CUDAGraph()

    def both(seed, make_step):
        lr.fill_(0.25 / (seed + 1))
        set_grads(p, seed)
        set_grads(q, seed)
        make_step()
        expected.step()
        assert_same_optimizers(ours, expected)

    both(0, ours.step)
    with torch.cuda.graph(graph):
        ours.step()
    both(1, graph.replay)
    both(2, graph.replay)
    both(3, ours.step)
    for x in p:  # other memory outside, but not for the graph
        x.grad = x.grad.clone()
    both(4, ours.step)


@needs_card("torch's own kernels are captured, too")
@each_capturable
def test_graph_of_a_training_step(name):
    """Gradients that are allocated within the graph."""

    def model_and_optimizer(**options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 300), nn.Tanh(), nn.Linear(300, 1)).cuda()
        return model, adan_optim.OPTIMIZERS[name](model.parameters(), **exact(name, fused=True, **options))

    def train(model, optimizer, x):
        optimizer.zero_grad(set_to_none=True)
        model(x).square().mean().backward()
        optimizer.step()

    model, optimizer = model_and_optimizer(capturable=True, max_grad_norm=0.1)
    other_model, expected = model_and_optimizer(max_grad_norm=0.1)
    data = torch.randn(8, 16, 8, device="cuda")
    static = torch.empty_like(data[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for x in data[:3]:
            train(model, optimizer, static.copy_(x))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        train(model, optimizer, static)
    for x in data[3:]:
        static.copy_(x)
        graph.replay()
    for x in data:
        train(other_model, expected, x)
    for ours, theirs in zip(tensors_of(optimizer), tensors_of(expected), strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_card("torch's warnings of waiting are counted")
@each_fused_name
def test_the_monitor_waits_once_for_a_sample(name):
    """And never in between; the result is the same in every bit."""
    (ours, p), (plain, q) = fused(name), fused(name)
    monitor = adan_optim.Monitor(ours, every=4)
    for i in range(1, 9):
        set_grads(p, i)
        set_grads(q, i)
        loss = p[0].sum()
        plain.step()
        torch.cuda.synchronize()
        monitor.record(loss=loss)
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("ignore")  # setting the mode warns that it is a prototype
            torch.cuda.set_sync_debug_mode("warn")
            warnings.simplefilter("always")
            try:
                ours.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits = [w for w in waits if "synchroniz" in str(w.message)]
        assert len(waits) == (1 if i in (1, 4, 8) else 0)
        if i == monitor.last["step"]:
            norm = sum(g.grad.double().square().sum() for g in p).sqrt().item()
            assert monitor.last["grad_norm"] == pytest.approx(norm, rel=1e-5)
            assert monitor.last["memory"]["peak"] == torch.cuda.max_memory_allocated()
    assert_same_optimizers(ours, plain)


@each_capturable
def test_the_monitor_leaves_a_capture_alone(name):
    ours, p = fused(name, capturable=True)
    set_grads(p, 0)
    monitor = adan_optim.Monitor(ours, every=1)
    ours.step()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        ours.step()
    assert [sample["step"] for sample in monitor.samples] == [1]


@pytest.mark.parametrize("name", WITH_FACTORS)
def test_factors_are_not_captured(name):
    with pytest.raises(ValueError, match="is more than its kernels, and is not captured"):
        fused(name, capturable=True)


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")  # which it is: the step was refused
def test_a_graph_needs_capturable():
    optimizer, params = fused("adamw")
    set_grads(params, 0)
    optimizer.step()
    before = tensors_of(optimizer)
    with pytest.raises(RuntimeError, match="capturable"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()
    assert_same_bits(tensors_of(optimizer), before)


# ---- streams, threads, devices


@each_fused_name
def test_streams(name):
    """Several optimizers at once on streams of their own, which they also exchange."""
    shapes = [(1000, 1001) if HERE else (20, 101), (5,)]
    expected, q = fused(name, shapes=shapes)
    racing = [(*fused(name, shapes=shapes), torch.cuda.Stream()) for _ in range(3)]
    torch.cuda.synchronize()
    for seed in range(20):
        for _, p, stream in racing:
            with torch.cuda.stream(stream):
                set_grads(p, seed)
        for i, (optimizer, _, stream) in enumerate(racing):
            now = stream
            if seed % 7 == 6:
                now = torch.cuda.Stream()
                now.wait_stream(stream)
            with torch.cuda.stream(now):
                optimizer.step()
            racing[i][2].wait_stream(now)
        set_grads(q, seed)
        expected.step()
    torch.cuda.synchronize()
    for optimizer, _, _ in racing:
        assert_same_optimizers(optimizer, expected)


def test_a_new_thread():
    """One that has no CUDA context yet."""
    ours, p = fused("adamw")
    expected, q = fused("adamw")
    set_grads(p, 0)
    set_grads(q, 0)
    errors = []
    thread = threading.Thread(target=lambda: errors.append(_error_of(ours.step)))
    thread.start()
    thread.join()
    assert errors == [None]
    expected.step()
    assert_same_optimizers(ours, expected)


def _error_of(function):
    try:
        function()
    except Exception as error:
        return error
    return None


@needs_card("there is one stand-in")
@each_fused_name
def test_two_devices(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has one CUDA device")
    expected, q = fused(name, "cpu", shapes=SHAPES * 2, max_grad_norm=0.5)
    params = [p.detach().to(f"cuda:{i % 2}").requires_grad_() for i, p in enumerate(q)]
    ours = adan_optim.OPTIMIZERS[name](params, **exact(name, fused=True, max_grad_norm=0.5))
    for seed in range(3):
        set_grads(params, seed)
        set_grads(q, seed)
        ours.step()
        expected.step()
    for x, y in zip(tensors_of(ours), tensors_of(expected), strict=True):
        torch.testing.assert_close(x.cpu(), y)
    assert torch.cuda.current_device() == 0


# ---- mixed precision, size


@each_fused_name
@pytest.mark.parametrize("case", ["f32", "f32_int8", "f32_taken", "f32_bfloat16_taken"])
def test_steps_with_inf_are_left_out(name, case):
    """With a GradScaler, which never waits for the device."""
    if case not in kept_by(name, "fused"):
        pytest.skip(f"{name} has no kernel for {case}")
    dtype, options = kept_by(name)[case]
    shapes = shapes_of(name, options)
    ours, p = fused(name, dtype=dtype, shapes=shapes, **options)
    expected, q = fused(name, dtype=dtype, shapes=shapes, **options)
    scaler = torch.amp.GradScaler("cuda" if HERE else "cpu", init_scale=8.0, growth_interval=1000)
    for seed in range(6):
        set_grads(p, seed)
        scale = scaler.scale(put(torch.ones(()), "cuda"))
        for x in p:
            x.grad *= scale
        if seed % 3 == 1:
            p[-1].grad[-1] = torch.inf
        else:
            set_grads(q, seed)
            expected.step()
        with no_waiting() if seed > 1 and name not in WITH_FACTORS else contextlib.nullcontext():
            scaler.step(ours)
            scaler.update()
        ours.zero_grad(set_to_none=True)
        expected.zero_grad(set_to_none=True)
        for x, y in zip(p, q, strict=True):
            assert_same_bits([x], [y])
            for key, value in expected.state[y].items():
                if key not in ("pre_grad", "pre_grad_scale"):  # only their product is the same
                    assert_same_bits([ours.state[x][key]], [value])


@needs_card("test_cuda.py has more than 32 bits")
def test_more_elements_than_31_bits_count():
    tail, size = 5000, 2**31 + 5000
    if torch.cuda.mem_get_info()[0] < 5 * 2 * size:
        pytest.skip("less than 22 GB of GPU memory are free")
    rule, kinds = RULES["adamw"], native.Kinds(native.PARAMETER[torch.float16], 0, 0, False)
    hyper = hyper_of("adamw", **exact("adamw"))
    small = make(rule, kinds, [tail], device="cuda")
    g = torch.randn(tail, device="cuda").half()
    big = {
        name: torch.zeros(size, dtype=torch.float16, device="cuda")
        for name in ("param", "grad", *rule.states)
    }
    big["param"][-tail:], big["grad"][-tail:] = small.params[0], g
    state = {"step": torch.zeros((), device="cuda"), **{name: big[name] for name in rule.states}}
    cuda.CudaTable(rule, kinds, [big["param"]], [big["grad"]], [state]).step(hyper, 1.0, None)
    cuda.CudaTable(rule, kinds, small.params, [g], small.states).step(hyper, 1.0, None)
    for name in ("param", *rule.states):
        expected = small.params[0] if name == "param" else small.states[0][name]
        assert torch.equal(big[name][-tail:], expected)
        assert not big[name][:-tail].any()
