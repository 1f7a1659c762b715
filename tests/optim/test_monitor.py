"""The monitor: every number against a recomputation in float64, and that it leaves training alone."""

import json
import math
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm.optim
import torch
import torch.distributed as dist
from harness import (
    array,
    assert_same_bits,
    build,
    make_params,
    needs_fsdp2,
    needs_names,
    set_grads,
    tensors_of,
)
from torch import nn

import adan_optim
from adan_optim import Monitor
from adan_optim.engine import storage
from adan_optim.monitor.statistics import Summary

SHAPES = [[(3, 4), (70, 80)], [(5,), (), (0, 2), (2, 3)]]  # of two groups; the last has no gradient
INT8 = dict(state_dtype="int8", min_int8_size=0)
OPTIMIZERS = {
    "sgd": lambda g: torch.optim.SGD(g, lr=0.1),
    "momentum": lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9),
    "adamw": lambda g: torch.optim.AdamW(g, lr=0.1, foreach=False),
    "adamw foreach": lambda g: torch.optim.AdamW(g, lr=0.1, foreach=True, amsgrad=True),
    "adamw fused": lambda g: torch.optim.AdamW(g, lr=0.1, fused=True),
    "timm lamb": lambda g: timm.optim.Lamb(g, lr=0.1),
    "ours adan": lambda g: build("adan", g),
    "ours reference": lambda g: build("adan", g, "reference"),
    "ours foreach": lambda g: build("adamw", g, "foreach"),
    "ours fused": lambda g: build("adan", g, "fused"),
    "ours taken": lambda g: build("adan", g, take_gradients=True),
    "ours int8": lambda g: build("adan", g, **INT8),
    "ours int8 taken": lambda g: build("adan", g, **INT8, take_gradients=True, max_grad_norm=0.5),
    "ours bfloat16": lambda g: build("adan", g, state_dtype="bfloat16"),
    "ours clipped": lambda g: build("adamw", g, max_grad_norm=0.5, nonfinite="skip"),
}
each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def two_groups(dtype=torch.float32):
    rng = np.random.default_rng(0)
    first, second = (make_params(shapes, rng, dtype) for shapes in SHAPES)
    groups = [dict(params=first, name="first"), dict(params=second, name="second", lr=0.01)]
    return groups, first + second, rng


def give_grads(params, rng, scale=1.0):
    set_grads(params[:-1], rng)
    for p in params[:-1]:
        p.grad *= scale


def decoded(optimizer, p):
    """States of a parameter's shape, as float64 arrays."""
    result = {}
    for name, x in optimizer.state.get(p, {}).items():
        if name not in ("step", "pre_grad_scale") and x.shape == p.shape:
            coded = x.dtype == torch.uint8
            signed = coded and name not in optimizer.card.nonnegative
            result[name] = array(storage.load(optimizer.state[p], name, signed) if coded else x)
    return result


def expected_numbers(optimizer, rows):
    """The quantities of (parameter, value before, gradient or None) taken together, by definition."""

    def together(arrays):
        return np.concatenate([x.ravel() for x in arrays] or [np.zeros(0)])

    before = together([b for _, b, _ in rows])
    numbers = {"weight_norm": np.linalg.norm(before), "weight_nonfinite": 0}
    moved = [(p, b, g) for p, b, g in rows if g is not None]
    if moved:
        grads = together([g for _, _, g in moved])
        numbers |= {"grad_norm": np.linalg.norm(grads), "grad_nonfinite": 0}
        weights = np.linalg.norm(together([b for _, b, _ in moved]))
        if weights > 0:
            update = together([array(p) - b for p, b, _ in moved])
            numbers["update_ratio"] = np.linalg.norm(update) / weights
    states = [decoded(optimizer, p) for p, _, _ in rows]
    for name in dict.fromkeys(name for state in states for name in state):
        x = together([state[name] for state in states if name in state])
        numbers |= {
            f"{name}.norm": np.linalg.norm(x),
            f"{name}.mean": x.mean() if x.size else 0.0,
            f"{name}.max": np.abs(x).max(initial=0.0),
        }
    return numbers


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # 1e-6 for float32 sums and seven digits; what cancels in a mean is as large as the elements
        atol = 1e-6 * expected[key.replace(".mean", ".max")] if key.endswith(".mean") else 1e-12
        assert found[key] == pytest.approx(value, rel=1e-5, abs=atol), key


def others(numbers):
    """A sample's numbers of the whole, of a group without what is the group's own."""
    names = {"step", "time", "loss", "clipped", "groups", "parameters", "memory", "lr", "loss_scale"}
    return {key: value for key, value in numbers.items() if key not in names}


# ---- values


@each_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_number(make, dtype):
    groups, params, rng = two_groups(dtype)
    try:
        optimizer = make(groups)
    except ValueError as error:
        assert dtype == torch.float64
        pytest.skip(str(error))
    monitor = Monitor(optimizer, every=1)
    for step in (1, 2, 3):
        give_grads(params, rng)
        rows = [(p, array(p), None if p.grad is None else array(p.grad)) for p in params]
        optimizer.step()
        sample = monitor.last
        assert sample["step"] == step
        if dtype == torch.bfloat16:  # whose differences are rounded
            ratio = expected_numbers(optimizer, rows)["update_ratio"]
            assert sample["update_ratio"] == pytest.approx(ratio, rel=0.01)
            for numbers in (sample, *sample["groups"].values(), *sample["parameters"].values()):
                numbers.pop("update_ratio", None)

        def expected(rows, optimizer=optimizer):
            numbers = expected_numbers(optimizer, rows)
            if dtype == torch.bfloat16:
                numbers.pop("update_ratio", None)
            return numbers

        assert_close(others(sample), expected(rows))
        assert_close(others(sample["groups"]["first"]), expected(rows[:2]))
        assert_close(others(sample["groups"]["second"]), expected(rows[2:]))
        assert list(sample["parameters"]) == ["0.0", "0.1", "1.0", "1.1", "1.2", "1.3"]
        for row, numbers in zip(rows, sample["parameters"].values(), strict=True):
            assert_close(numbers, expected([row]))
        assert [group["lr"] for group in sample["groups"].values()] == [
            group["lr"] for group in optimizer.param_groups
        ]


def test_a_mean_is_over_the_elements():
    p = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([p], lr=1.0, momentum=0.5)
    monitor = Monitor(optimizer, every=1)
    p.grad = torch.tensor([1.0, -6.0, 2.0, 1.0])
    optimizer.step()
    numbers = {key: monitor.last[f"momentum_buffer.{key}"] for key in ("norm", "mean", "max")}
    assert numbers == {"norm": pytest.approx(math.sqrt(42)), "mean": -0.5, "max": 6.0}
    assert "update_ratio" not in monitor.last  # the weights were zero
    optimizer.step()
    assert monitor.last["update_ratio"] == pytest.approx(1.5)


@pytest.mark.parametrize("kind", ["complex", "sparse", "channels_last"])
def test_unusual_tensors(kind):
    if kind == "complex":
        p = nn.Parameter(torch.tensor([3 + 4j, 0j]))
        p.grad = torch.tensor([0j, 1 + 2j])
    elif kind == "sparse":
        p = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        values = [[0.0, 1.0], [2.0, 0.0]]  # of row 1, twice
        p.grad = torch.sparse_coo_tensor([[1, 1]], values, (2, 2), check_invariants=True)
    else:
        p = nn.Parameter(torch.zeros(1, 2, 2, 2).to(memory_format=torch.channels_last))
        p.data[0, 0, 0, 0], p.data[0, 1, 0, 0] = 3.0, 4.0
        p.grad = torch.zeros_like(p)
        p.grad[0, 0, 1, 1], p.grad[0, 1, 1, 1] = 2.0, 1.0
    optimizer = torch.optim.SGD([p], lr=2.0)
    monitor = Monitor(optimizer, every=1)
    optimizer.step()
    assert monitor.last["grad_norm"] == pytest.approx(math.sqrt(5))
    assert monitor.last["weight_norm"] == pytest.approx(5)
    assert monitor.last["update_ratio"] == pytest.approx(2 * math.sqrt(5) / 5)


def test_memory():
    groups, params, rng = two_groups()
    optimizer = build("adan", groups, **INT8)
    monitor = Monitor(optimizer, every=1)
    give_grads(params, rng)
    optimizer.step()
    memory = monitor.last["memory"]
    count = sum(p.numel() for p in params)
    assert memory["parameters"] == 4 * count
    assert memory["gradients"] == 4 * (count - params[-1].numel())
    assert memory["states"] == adan_optim.state_bytes(optimizer)
    assert memory["states"]["exp_avg"] == count - params[-1].numel()
    assert memory["peak_of"] == "process, resident"
    status = Path("/proc/self/status")
    if status.exists():
        [peak] = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert memory["peak"] == pytest.approx(1024 * int(peak), rel=0.1)


# ---- when and how often


def test_sampled_steps():
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1)
    monitor = Monitor(optimizer, every=4)
    for _ in range(13):
        p.grad = torch.ones(2)
        optimizer.step()
    assert [sample["step"] for sample in monitor.samples] == [1, 4, 8, 12]
    assert monitor.step == 13


def test_one_transfer_for_each_sample(monkeypatch):
    groups, params, rng = two_groups()
    optimizer = torch.optim.SGD(groups, lr=torch.tensor(0.1), momentum=0.9)
    calls = []
    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *arguments, original=original, name=name):
            calls.append(name)
            return original(self, *arguments)

        monkeypatch.setattr(torch.Tensor, name, counted)
    counts = []
    for every in (None, 3):
        monitor = every and Monitor(optimizer, every=every)
        for _ in range(6):
            give_grads(params, rng)
            calls.clear()
            if monitor:
                monitor.record(loss=params[0].sum(), accuracy=params[1].mean())
            optimizer.step()
            counts.append(len(calls))
    without = counts[0]
    assert counts == [without] * 6 + [without + n for n in (1, 0, 1, 0, 0, 1)]


def test_between_samples_nothing_is_computed():
    groups, params, rng = two_groups()
    optimizer = torch.optim.SGD(groups, lr=0.1)
    monitor = Monitor(optimizer, every=1000)
    give_grads(params, rng)
    optimizer.step()

    class Operations(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **kwargs or {})

    seen = []
    with Operations():
        optimizer.step()
    with_monitor, seen = seen, []
    monitor.close()
    with Operations():
        optimizer.step()
    assert with_monitor == seen


# ---- training is left alone


def train(make, monitored, tmp_path):
    groups, params, rng = two_groups()
    optimizer = make(groups)
    torch.manual_seed(0)
    monitor = Monitor(optimizer, every=2, path=tmp_path / "m.jsonl") if monitored else None
    left = []
    for _ in range(7):
        give_grads(params, rng, scale=float(torch.rand(())))
        if monitor:
            monitor.record(loss=params[0].sum())
        optimizer.step()
        left += [torch.zeros(0) if p.grad is None else p.grad.clone() for p in params]
    return optimizer, params, left


@each_optimizer
def test_the_same_bits(make, tmp_path):
    optimizer, params, left = train(make, True, tmp_path)
    plain, plain_params, plain_left = train(make, False, tmp_path)
    assert_same_bits(params, plain_params)
    assert_same_bits(left, plain_left)
    if isinstance(optimizer, adan_optim.Optimizer):
        assert_same_bits(tensors_of(optimizer), tensors_of(plain))


@pytest.mark.parametrize("make", [OPTIMIZERS["ours adan"], OPTIMIZERS["adamw fused"], OPTIMIZERS["sgd"]])
def test_scaled_gradients(make):
    """GradScaler hands its scale to optimizers that can take it, and unscales for the others."""
    groups, params, rng = two_groups()
    optimizer = make(groups)
    monitor = Monitor(optimizer, every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    for step in range(3):
        give_grads(params, rng)
        expected = np.sqrt(sum(np.sum(array(p.grad) ** 2) for p in params[:-1]))
        for p in params[:-1]:
            p.grad *= 1024.0
        if step == 1:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update(1024.0)
        assert monitor.last["grad_norm"] == pytest.approx(expected, rel=1e-5)
        scaled = getattr(optimizer, "_step_supports_amp_scaling", False) and step != 1
        assert monitor.last.get("loss_scale") == (1024.0 if scaled else None)


@pytest.mark.parametrize("by_name", [False, True])
def test_gradients_of_a_closure(by_name):
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([p], lr=0.1)
    monitor = Monitor(optimizer, every=1)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        monitor.record(loss=loss)
        return loss

    loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
    assert calls == [True]
    assert loss == monitor.last["loss"] == 25.0
    assert monitor.last["grad_norm"] == 10.0
    assert monitor.last["update_ratio"] == pytest.approx(0.2)


def test_a_closure_that_is_called_more_than_once():
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.LBFGS([p], lr=0.1, max_iter=3)
    monitor = Monitor(optimizer, every=1)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert monitor.last["grad_norm"] == 10.0
    assert monitor.last["update_ratio"] == pytest.approx(1 - p.detach().norm().item() / 5, rel=1e-5)


def test_a_step_that_raises():
    p = nn.Parameter(torch.ones(3))
    optimizer = build("adan", [p], nonfinite="raise")
    monitor = Monitor(optimizer, every=3)
    p.grad = torch.tensor([1.0, math.nan, 1.0])
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert monitor.last is None
    for _ in range(3):
        p.grad = torch.ones(3)
        optimizer.step()
    assert [sample["step"] for sample in monitor.samples] == [3]


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch", "ignore:.*:FutureWarning:torch")
def test_a_compiled_step():
    torch._dynamo.reset()
    results = []
    for monitored in (False, True):
        p = nn.Parameter(torch.ones(4))
        optimizer = torch.optim.AdamW([p], lr=torch.tensor(0.1))
        monitor = Monitor(optimizer, every=3) if monitored else None
        step = torch.compile(optimizer.step, backend="eager")
        for i in range(12):
            p.grad = torch.full((4,), 1.0 + i)
            step()
        results.append(p)
    assert [sample["step"] for sample in monitor.samples] == [1, 3, 6, 9, 12]
    assert monitor.last["grad_norm"] == 24.0
    assert_same_bits([results[0]], [results[1]])


# ---- clipping


def norms(optimizer, p, wanted, monitor, clip=None, record=False):
    for norm in wanted:
        p.grad = torch.tensor([norm, 0.0])
        if clip:
            seen = nn.utils.clip_grad_norm_([p], clip)
            if record:
                monitor.record(grad_norm=seen)
        optimizer.step()
    return [sample.get("clipped") for sample in monitor.samples]


WANTED, CLIPPED = [0.5, 3.0, 0.99, 1.01, 50.0], [0, 1, 0, 1, 1]


@pytest.mark.parametrize("make", [lambda p: build("adamw", p, max_grad_norm=1.0), timm.optim.Lamb])
def test_optimizers_that_clip(make):
    p = nn.Parameter(torch.ones(2))
    optimizer = make([p])
    monitor = Monitor(optimizer, every=1)
    assert norms(optimizer, p, WANTED, monitor) == CLIPPED
    assert monitor.summary("clipped").mean == 0.6
    assert "clipped: 60 % of the samples, at a gradient norm of 1\n" in monitor.report()


@pytest.mark.parametrize("record", [False, True])
def test_loops_that_clip(record):
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1)
    monitor = Monitor(optimizer, every=1, max_grad_norm=1.0)
    assert norms(optimizer, p, WANTED, monitor, clip=1.0, record=record) == CLIPPED
    largest = monitor.summary("grad_norm").max
    assert largest == pytest.approx(50.0 if record else 1.0, rel=1e-5)


def test_who_does_not_clip():
    p = nn.Parameter(torch.ones(2))
    optimizer = build("adan", [p])
    monitor = Monitor(optimizer, every=1)
    assert norms(optimizer, p, WANTED, monitor) == [None] * 5
    assert "clipped" not in monitor.report()


# ---- numbers that are not finite


@pytest.mark.parametrize("make", [OPTIMIZERS["ours adan"], OPTIMIZERS["ours clipped"], OPTIMIZERS["sgd"]])
def test_not_finite(make, tmp_path):
    groups, params, rng = two_groups()
    optimizer = make(groups)
    skips = getattr(optimizer, "nonfinite", "") == "skip"
    path = tmp_path / "m.jsonl"
    monitor = Monitor(optimizer, every=1, path=path)
    give_grads(params, rng)
    optimizer.step()
    assert not monitor.events
    assert "nothing in any sample" in monitor.report()
    give_grads(params, rng)
    params[0].grad[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    params[2].grad[1] = math.inf
    monitor.record(loss=math.nan, other=math.inf)
    optimizer.step()
    last = monitor.last
    assert (last["grad_norm"], last["grad_nonfinite"], last["loss"], last["other"]) == (None, 4, None, None)
    bad = sum(int((~p.isfinite()).sum()) for p in params)
    assert last["weight_nonfinite"] == bad == (0 if skips else 4)
    assert last["groups"]["first"]["grad_nonfinite"] == 3
    assert last["parameters"]["1.0"]["grad_nonfinite"] == 1
    assert last["parameters"]["0.1"]["grad_norm"] is not None
    [(step, what)] = monitor.events
    assert step == 2
    assert what.startswith("4 elements of the gradients (0.0, 1.0)")
    assert what.endswith(", loss, other")
    assert f"step 2: {what}" in monitor.report()
    assert monitor.summary("loss").nonfinite == 1
    assert math.isnan(monitor.summary("loss").mean)

    def refuse(name):
        raise AssertionError(name)

    lines = path.read_text().splitlines()
    assert json.loads(lines[1], parse_constant=refuse)["loss"] is None  # there is no NaN in JSON


@pytest.mark.parametrize("bad", [0, 1])
def test_a_nan_in_any_state_is_in_the_maximum(bad):
    """Python's max(1, nan) is 1."""
    params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    monitor = Monitor(optimizer, every=1)
    for _ in range(2):
        for p in params:
            p.grad = torch.ones(2)
        optimizer.step()
        optimizer.state[params[bad]]["momentum_buffer"][0] = math.nan
    assert monitor.last["momentum_buffer.max"] is None
    assert [monitor.last["parameters"][f"0.{i}"]["momentum_buffer.max"] is None for i in range(2)] == [
        i == bad for i in range(2)
    ]
    assert "momentum_buffer.max" in monitor.report()


def test_a_norm_that_overflows():
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.0)
    monitor = Monitor(optimizer, every=1)
    p.grad = torch.full((2,), 3e38)
    optimizer.step()
    assert monitor.last["grad_nonfinite"] == 0
    assert monitor.events[0][1].startswith("grad_norm")


# ---- what the loop records


def test_record():
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1)
    monitor = Monitor(optimizer, every=3)
    for step in range(1, 7):
        loss = (p * step).sum()
        monitor.record(loss=loss, accuracy=np.float32(step) / 8, one=torch.ones(1, dtype=torch.int64))
        assert not monitor._metrics["loss"].requires_grad  # which would keep the graph
        p.grad = torch.zeros(2)
        optimizer.step()
    assert [(s["loss"], s["accuracy"], s["one"]) for s in monitor.samples] == [
        (2, 0.125, 1),
        (6, 0.375, 1),
        (12, 0.75, 1),
    ]
    optimizer.step()
    optimizer.step()
    optimizer.step()
    assert "loss" not in monitor.last  # nothing was recorded since


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        (dict(loss=torch.ones(2)), ValueError, r"loss is a tensor of shape \(2,\): record one number"),
        (dict(loss="1"), TypeError, "loss='1': record a number"),
        (dict(loss=None), TypeError, "loss=None: record a number"),
        (dict(step=1), ValueError, "step has another meaning"),
        (dict(parameters=1), ValueError, "parameters has another meaning"),
    ],
)
def test_bad_records(metrics, error, message):
    with pytest.raises(error, match=message):
        Monitor(torch.optim.SGD([nn.Parameter(torch.ones(1))])).record(**metrics)


# ---- statistics


@pytest.mark.parametrize("kind", ["normal", "lognormal", "wide", "same", "zeros", "one"])
def test_summary(kind):
    rng = np.random.default_rng(0)
    xs = {
        "normal": rng.standard_normal(1000),
        "lognormal": np.exp(3 * rng.standard_normal(1001)),
        "wide": 10.0 ** rng.uniform(-45, 38, 500) * rng.choice([-1, 1], 500),
        "same": np.full(77, 0.3),
        "zeros": np.array([0.0, -1.0, 0.0, 2.0, 0.0]),
        "one": np.array([-5.0]),
    }[kind]
    summary = Summary()
    for x in xs:
        summary.add(float(x))
        summary.add(math.nan)
    summary.add(None)
    assert (summary.count, summary.nonfinite) == (len(xs), len(xs) + 1)
    assert (summary.first, summary.last) == (xs[0], xs[-1])
    assert (summary.min, summary.max) == (xs.min(), xs.max())
    assert summary.mean == pytest.approx(xs.mean(), rel=1e-9, abs=1e-12)
    assert summary.deviation == pytest.approx(xs.std(), rel=1e-9, abs=1e-12)
    for q in (0, 0.05, 0.25, 0.5, 0.95, 1):
        exact = np.quantile(xs, q, method="lower")
        assert summary.quantile(q) == pytest.approx(exact, rel=0.0100001, abs=0), q


def test_no_statistics():
    summary = Summary()
    summary.add(None)
    assert all(map(math.isnan, (summary.mean, summary.deviation, summary.quantile(0.5), summary.min)))


def test_memory_is_bounded():
    summary = Summary()
    rng = np.random.default_rng(0)
    for x in 10.0 ** rng.uniform(-45, 38, 60000):
        summary.add(x)
    assert len(summary._bins) <= math.log(1e83) / math.log(1.01 / 0.99) + 2
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1)
    monitor = Monitor(optimizer, every=1, history=5)
    p.grad = torch.tensor([math.nan, 1.0])
    for _ in range(100):
        optimizer.step()
    assert [sample["step"] for sample in monitor.samples] == [96, 97, 98, 99, 100]
    assert monitor.nonfinite_samples == 100
    assert len(monitor.events) == 20
    assert not any("parameters" in sample for sample in monitor.samples)


def test_summary_by_group_and_parameter():
    groups, params, rng = two_groups()
    monitor = Monitor(torch.optim.SGD(groups, lr=0.1), every=1)
    for _ in range(3):
        give_grads(params, rng)
        monitor.optimizer.step()
    ours = monitor.summary("grad_norm", parameter="0.1")
    assert ours.count == 3
    assert ours.last == monitor.last["parameters"]["0.1"]["grad_norm"]
    assert monitor.summary("lr", group="second").mean == 0.01
    whole = [sample["grad_norm"] for sample in monitor.samples]
    assert monitor.summary("grad_norm").mean == pytest.approx(np.mean(whole))
    with pytest.raises(KeyError, match="no sample of 'loss' for 'first'"):
        monitor.summary("loss", group="first")


def test_without_parameters_and_ratios(tmp_path):
    groups, params, rng = two_groups()
    optimizer = torch.optim.SGD(groups, lr=0.1)
    monitor = Monitor(optimizer, every=1, per_parameter=False, update_ratio=False, path=tmp_path / "m.jsonl")
    give_grads(params, rng)
    optimizer.step()
    assert "parameters" not in json.loads((tmp_path / "m.jsonl").read_text())
    assert "update_ratio" not in monitor.last
    assert not any(kind == "parameters" for kind, _, _ in monitor.summaries)
    assert "update_ratio" not in monitor.report()


@needs_names
def test_names():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    frozen = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD(
        [dict(params=[model[0].weight, frozen]), dict(params=[model[0].bias, *model[1].parameters()])], lr=0.1
    )

    def names(monitor):
        optimizer.step()
        monitor.close()
        return [*monitor.last["groups"]], [*monitor.last["parameters"]]

    ours = ["0.weight", "0.1", "0.bias", "1.weight", "1.bias"]
    assert names(Monitor(optimizer, model)) == (["0", "1"], ours)
    assert names(Monitor(optimizer))[1] == ["0.0", "0.1", "1.0", "1.1", "1.2"]
    for group in optimizer.param_groups:
        group["name"] = "same"
    assert names(Monitor(optimizer, model))[0] == ["0:same", "1:same"]
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    assert names(Monitor(optimizer))[1] == [name for name, _ in model.named_parameters()]


def test_a_group_that_is_added():
    p, q = (nn.Parameter(torch.ones(n)) for n in (2, 3))
    optimizer = torch.optim.SGD([p], lr=0.1)
    monitor = Monitor(optimizer, every=1)
    optimizer.step()
    optimizer.add_param_group({"params": [q]})
    optimizer.step()
    assert monitor.last["weight_norm"] == pytest.approx(math.sqrt(5))
    assert [*monitor.last["groups"]] == ["0", "1"]


# ---- the file


def run(path, steps, **options):
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1)
    with Monitor(optimizer, every=2, path=path, **options) as monitor:
        for _ in range(steps):
            p.grad = torch.full((2,), float(monitor.step + 1))
            monitor.record(loss=monitor.step + 1)
            optimizer.step()
    return monitor


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def without_time(samples):
    return [{key: value for key, value in s.items() if key not in ("time", "memory")} for s in samples]


def test_the_file_has_every_sample(tmp_path):
    path = tmp_path / "new folder" / "m.jsonl"
    monitor = run(path, 7)
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [1, 2, 4, 6]
    assert samples[-1] == monitor.last
    for sample in samples:
        del sample["parameters"]
    assert samples == list(monitor.samples)


def test_one_write_for_each_sample(tmp_path):
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1)
    Monitor(optimizer, every=1, path=tmp_path / "m.jsonl")
    sizes = []
    for _ in range(3):
        optimizer.step()
        sizes.append((tmp_path / "m.jsonl").stat().st_size)  # unbuffered: there after each
    assert sizes[0] < sizes[1] < sizes[2]
    assert steps_in(tmp_path / "m.jsonl") == [1, 2, 3]


@pytest.mark.parametrize("torn", [b'{"step": 6, "time": 12', b'{"st', b"{"])
def test_continuing_after_a_kill(tmp_path, torn):
    """The last line is not whole: it goes, and the statistics are those of an uninterrupted run."""
    path, whole = tmp_path / "m.jsonl", tmp_path / "whole.jsonl"
    run(path, 5)
    with path.open("ab") as file:
        file.write(torn)
    monitor = run(path, 7, step=5)
    expected = run(whole, 12)
    assert steps_in(path) == steps_in(whole) == [1, 2, 4, 6, 8, 10, 12]
    assert monitor.step == 12
    ours, theirs = monitor.summary("loss"), expected.summary("loss")
    assert (ours.first, ours.last, ours.mean) == (theirs.first, theirs.last, theirs.mean)
    assert without_time(monitor.samples) != without_time(expected.samples)  # the weights began afresh
    assert [s["grad_norm"] for s in monitor.samples] == [s["grad_norm"] for s in expected.samples]


def test_where_a_run_goes_on(tmp_path):
    path = tmp_path / "m.jsonl"
    run(path, 8)
    assert run(path, 0).step == 8  # the file's last
    assert run(path, 2, step=5).step == 7  # a checkpoint of step 5: 6 and 8 are made again
    assert steps_in(path) == [1, 2, 4, 6]
    assert run(path, 3, step=0).step == 3  # afresh
    assert steps_in(path) == [1, 2]
    assert run(tmp_path / "other.jsonl", 1, step=9).step == 10
    assert steps_in(tmp_path / "other.jsonl") == [10]


@pytest.mark.parametrize("content", ["a poem\n", "a poem", '{"step": 1}\n{"a": 2}\n', '{"loss": 1}\n'])
def test_another_file_is_not_touched(tmp_path, content):
    path = tmp_path / "m.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="is not a file of samples: give another"):
        run(path, 1)
    assert path.read_text() == content


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "m.jsonl"):
        with pytest.raises(OSError, match=f"path='{path}': cannot write there: "):
            run(path, 1)


# ---- arguments, ends


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(every=0), ValueError, "every=0: give a whole number >= 1"),
        (dict(every=-3), ValueError, "every=-3"),
        (dict(every=2.5), ValueError, "every=2.5"),
        (dict(every=True), ValueError, "every=True"),
        (dict(history=0), ValueError, "history=0: give a whole number >= 1"),
        (dict(step=-1), ValueError, "step=-1: give a whole number >= 0"),
        (dict(max_grad_norm=0.0), ValueError, "max_grad_norm=0.0: give a number above 0, or None"),
        (dict(run="wandb"), TypeError, "run='wandb': give a wandb run"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        Monitor(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), **options)


def test_what_is_not_an_optimizer():
    model = nn.Linear(1, 1)
    with pytest.raises(TypeError, match="optimizer is a Linear: give a torch"):
        Monitor(model)
    wrapped = timm.optim.Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="the step of Lookahead runs no hooks: give the optimizer inside it"):
        Monitor(wrapped)


def test_close():
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1)
    with Monitor(optimizer, every=1) as monitor:
        optimizer.step()
    optimizer.step()
    assert monitor.step == len(monitor.samples) == 1
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert monitor.report()
    monitor.close()  # twice does no harm


def test_import_is_cheap():
    code = "import sys, adan_optim; print(adan_optim.Monitor and {'matplotlib', 'wandb'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "set()"


# ---- for people


def test_report_and_plot(tmp_path):
    pytest.importorskip("matplotlib", reason="comes with the recipes, which the image `core` lacks")
    groups, params, rng = two_groups()
    optimizer = build("adan", groups, max_grad_norm=1.0)
    monitor = Monitor(optimizer, every=2)
    assert monitor.report() == f"0 steps of {optimizer.path}; no sample yet"
    with pytest.raises(ValueError, match="nothing to plot"):
        monitor.plot(tmp_path / "m.png")
    for i in range(6):
        give_grads(params, rng)
        monitor.record(loss=4 - i / 2)
        optimizer.step()
    report = monitor.report()
    assert report.startswith(f"6 steps of {optimizer.path}; 4 samples, one in 2\n")
    [loss] = re.findall(r"^loss (.*)$", report, flags=re.MULTILINE)
    assert loss.split()[:3] == ["4", "1.5", "2.875"]  # first, last, mean of 4, 3.5, 2.5, 1.5
    medians = {
        name: monitor.summary("update_ratio", parameter=name).quantile(0.5)
        for name, numbers in monitor.last["parameters"].items()
        if "update_ratio" in numbers
    }
    worst = max(medians, key=medians.get)
    assert f"largest median update_ratio\n  {medians[worst]:.3g}  {worst}\n" in report
    [mib] = re.findall(r"^parameters +(\S+)$", report, flags=re.MULTILINE)
    assert mib == f"{4 * sum(p.numel() for p in params) / 2**20:.2f}"
    monitor.plot(tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    monitor.plot(tmp_path / "m.svg")
    svg = (tmp_path / "m.svg").read_text()
    assert all(
        text in svg for text in ("from 4 to 1.5", "gradient norm (L2)", "Not finite: nothing in any sample")
    )
    monitor.plot(tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == svg


def test_plot_of_many_groups(tmp_path):
    pytest.importorskip("matplotlib", reason="comes with the recipes, which the image `core` lacks")
    params = [nn.Parameter(torch.full((2,), float(size))) for size in range(1, 10)]
    optimizer = torch.optim.SGD([{"params": [p], "name": f"group {i}"} for i, p in enumerate(params)], lr=0.0)
    monitor = Monitor(optimizer, every=1)
    for p in params:
        p.grad = torch.ones(2)
    monitor.record(loss=1.0)
    optimizer.step()
    monitor.plot(tmp_path / "m.svg")
    svg = (tmp_path / "m.svg").read_text()
    assert "highest at the end: group 8" in svg  # its weights
    assert "in grey: the 2 that end lowest" in svg


def test_plot_of_what_is_not_finite(tmp_path):
    pytest.importorskip("matplotlib", reason="comes with the recipes, which the image `core` lacks")
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1)
    monitor = Monitor(optimizer, every=1)
    p.grad = torch.tensor([math.nan, 0.0])
    monitor.record(loss=math.nan)
    optimizer.step()
    monitor.plot(tmp_path / "m.png")
    assert "loss" in monitor.report()


def test_a_run_is_told(tmp_path):
    class Run:
        def log(self, numbers, step):
            logged.append((step, numbers))

    logged = []
    groups, params, rng = two_groups()
    optimizer = torch.optim.SGD(groups, lr=0.1)
    monitor = Monitor(optimizer, every=2, run=Run())
    for _ in range(2):
        give_grads(params, rng)
        monitor.record(loss=2.0)
        optimizer.step()
    assert [step for step, _ in logged] == [1, 2]
    numbers = logged[-1][1]
    assert numbers["monitor/loss"] == 2.0
    assert numbers["monitor/groups/second/lr"] == 0.01
    assert numbers["monitor/grad_norm"] == monitor.last["grad_norm"]
    assert all(isinstance(value, (int, float)) for value in numbers.values())


# ---- sharded parameters


def worker(rank, port, folder):
    """One of two processes: a sample of a sharded and of a whole model must agree."""
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        samples = []
        for sharded in (False, True):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 5), nn.Linear(5, 1))  # 1 row on 2 processes
            if sharded:
                fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
            optimizer = adan_optim.AdamW(model.parameters(), lr=0.1, max_grad_norm=0.1)
            path = folder / f"{sharded}.jsonl" if rank == 0 else None
            with Monitor(optimizer, model, every=1, path=path) as monitor:
                for _ in range(2):
                    model(torch.arange(12.0).view(2, 6)).sum().backward()
                    optimizer.step()
                    optimizer.zero_grad()
            samples.append(monitor.last)
        torch.save(samples, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.exhaustive
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
@needs_fsdp2
def test_sharded_parameters(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, tmp_path), nprocs=2)
    for rank in range(2):
        whole, sharded = torch.load(tmp_path / f"{rank}.pt")
        assert sharded["clipped"] == 1
        assert 0 < sharded["memory"]["parameters"] < whole["memory"]["parameters"]
        assert_close(others(sharded), others(whole))
        assert [*sharded["parameters"]] == [*whole["parameters"]]
        for name, numbers in whole["parameters"].items():
            assert_close(sharded["parameters"][name], numbers)
    assert steps_in(tmp_path / "True.jsonl") == [1, 2]
