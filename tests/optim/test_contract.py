"""The fast path believes nothing that it has not checked (optim/adan_optim/engine/contract.py).
 Parameters, gradients, states and groups are changed between steps in every way that torch allows. A step
then does what the reference path does, or raises one exception; it never writes to memory of others. `make
test-sanitize` runs these tests with the kernels under AddressSanitizer, and many more examples.
"""

import functools
import os

import numpy as np
import pytest
import torch
from harness import FUSED, KEPT, all_params, array, build, can, each_fused_name, random, value_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._pytree import tree_map_only

import adan_optim
from adan_optim.engine import native
from adan_optim.engine.contract import overlapping
from adan_optim.engine.plan import collect

SHAPES = [(5, 6), (4, 4), (300,), ()]
GUARD = 64  # elements around a tensor
EXAMPLES = int(os.environ.get("ADAN_EXAMPLES", "150"))


class Memory:
    """Tensors with guards around, in which nothing may be written."""

    def __init__(self):
        self.buffers = []

    def copy(self, x, gaps=1):
        """A copy of a tensor; with gaps of this many elements."""
        buffer = torch.full((2 * GUARD + gaps * max(x.numel(), 1),), 77, dtype=x.dtype)
        strides = [gaps * stride for stride in torch.empty(x.shape, device="meta").stride()]
        view = buffer.as_strided(x.shape, strides, GUARD)
        view.copy_(x)
        inside = torch.zeros(buffer.shape, dtype=torch.bool)
        inside.as_strided(x.shape, strides, GUARD).fill_(True)
        self.buffers.append((buffer, ~inside))
        return view

    def check(self):
        for buffer, outside in self.buffers:
            assert (buffer[outside] == 77).all(), "memory of others was written"


# ---- changes: functions of the optimizer, its memory, and a number to choose with


def pick(optimizer, n):
    params = all_params(optimizer)
    return params[n % len(params)]


def new_data(change):
    def mutate(optimizer, memory, n):
        p = pick(optimizer, n)
        p.data = change(p.data, memory, n)

    return mutate


def other_rows(x, memory, n):
    rows = (0, 1, 7, 2000)[n % 4]
    return memory.copy(
        torch.linspace(-1, 1, rows * x[:1].numel(), dtype=x.dtype).view(rows, *x.shape[1:]) if x.ndim else x
    )


def other_type(x, memory, n):
    return memory.copy(x.to([torch.float64, torch.bfloat16, torch.float16, torch.float32][n % 4]))


def share_data(optimizer, memory, n):
    p, q = pick(optimizer, n), pick(optimizer, n + 1)
    if p.shape == q.shape or p.numel() >= q.numel():
        q.data = p.data.flatten()[: q.numel()].view(q.shape)


def exchange_data(optimizer, memory, n):
    p, q = pick(optimizer, n), pick(optimizer, n + 1)
    p.data, q.data = q.data, p.data


def swap_tensors(optimizer, memory, n):
    torch.utils.swap_tensors(optimizer.state[pick(optimizer, n)]["step"], torch.tensor(7.0))


def move_storage(optimizer, memory, n):
    storage = pick(optimizer, n).data.untyped_storage()
    if not storage.is_shared():  # torch crashes
        storage.resize_(1 << 14)


def replace_parameter(optimizer, memory, n):
    p = pick(optimizer, n)
    q = torch.nn.Parameter(memory.copy(p.detach()))
    for group in optimizer.param_groups:
        group["params"] = [q if x is p else x for x in group["params"]]
    if n % 2 and p in optimizer.state:
        optimizer.state[q] = optimizer.state.pop(p)


def share_in_memory(optimizer, memory, n):
    pick(optimizer, n).data.share_memory_()


def freeze(optimizer, memory, n):
    p = pick(optimizer, n)
    p.requires_grad_(False)
    p.frozen = True


def thaw(optimizer, memory, n):
    pick(optimizer, n).frozen = False


def in_state(change):
    """A change of one of the tensors in a parameter's state."""

    def mutate(optimizer, memory, n):
        state = optimizer.state.get(pick(optimizer, n), {})
        keys = sorted(key for key, x in state.items() if isinstance(x, torch.Tensor))
        if keys:
            change(state, keys[n // 7 % len(keys)], memory, n)

    return mutate


def replaced_by(value):
    def change(state, key, memory, n):
        state[key] = value(state[key], memory, n)

    return in_state(change)


def data_of_state(value):
    def change(state, key, memory, n):
        state[key].data = value(state[key].data, memory, n)

    return in_state(change)


def delete_state(state, key, memory, n):
    del state[key]


def set_storage(state, key, memory, n):
    with torch.no_grad():
        state[key].set_(memory.copy(state[key]))


def share_state(state, key, memory, n):
    state[key].share_memory_()


def resize_in_place(state, key, memory, n):
    if not state[key].is_shared():  # torch crashes: torch.zeros(4).share_memory_().resize_(5)
        state[key].resize_(n % 700)


def transpose_in_place(state, key, memory, n):
    if state[key].ndim == 2:
        state[key].t_()


def foreign_entries(optimizer, memory, n):
    state = optimizer.state[pick(optimizer, n)]
    state["rank"], state["slow"] = n, torch.ones(3)


def one_state_for_two(optimizer, memory, n):
    p, q = pick(optimizer, n), pick(optimizer, n + 1)
    if p in optimizer.state:
        optimizer.state[q] = optimizer.state[p]


def set_step(optimizer, memory, n):
    values = [
        torch.tensor(5), torch.tensor(5.0, dtype=torch.float64), torch.tensor([5.0]), torch.ones(2), 5, 5.0,
        "5",
    ]  # fmt: skip
    optimizer.state[pick(optimizer, n)]["step"] = values[n % len(values)]


def in_group(key, *values):
    def mutate(optimizer, memory, n):
        group = optimizer.param_groups[0]
        if key in group:
            group[key] = values[n % len(values)]

    return mutate


def delete_option(optimizer, memory, n):
    group = optimizer.param_groups[0]
    names = sorted(group.keys() - {"params"})
    del group[names[n % len(names)]]


CHANGES = {
    "param cloned": new_data(lambda x, memory, n: memory.copy(x)),
    "param with gaps": new_data(lambda x, memory, n: memory.copy(x, gaps=3)),
    "param of other rows": new_data(other_rows),
    "param of another type": new_data(other_type),
    "param transposed": new_data(lambda x, memory, n: x.t() if x.ndim == 2 else x),
    "param transposed in memory": new_data(lambda x, memory, n: memory.copy(x.t()).t() if x.ndim == 2 else x),
    "param negated lazily": new_data(lambda x, memory, n: torch._neg_view(x)),
    "param in shared memory": share_in_memory,
    "param's storage moved": move_storage,
    "params share memory": share_data,
    "params exchanged": exchange_data,
    "param replaced": replace_parameter,
    "param frozen": freeze,
    "param thawed": thaw,
    "state cloned": replaced_by(lambda x, memory, n: memory.copy(x)),
    "state moved": data_of_state(lambda x, memory, n: memory.copy(x)),
    "state of other rows": replaced_by(other_rows),
    "state's data of other rows": data_of_state(other_rows),
    "state of another type": replaced_by(other_type),
    "state's data of another type": data_of_state(other_type),
    "state of integers": replaced_by(lambda x, memory, n: x.to(torch.int64)),
    "state with gaps": replaced_by(lambda x, memory, n: memory.copy(x, gaps=2)),
    "state expanded": replaced_by(lambda x, memory, n: x.flatten()[:1].expand(x.numel()).view(x.shape)),
    "state transposed": in_state(transpose_in_place),
    "state negated lazily": replaced_by(lambda x, memory, n: torch._neg_view(x.neg())),
    "state on meta": replaced_by(lambda x, memory, n: x.to("meta")),
    "state sparse": replaced_by(lambda x, memory, n: x.to_sparse()),
    "state a number": replaced_by(lambda x, memory, n: 0.5),
    "state a wrapper": replaced_by(lambda x, memory, n: TwoTensor(x, x.clone())),
    "state deleted": in_state(delete_state),
    "state set_": in_state(set_storage),
    "state in shared memory": in_state(share_state),
    "state resized": in_state(resize_in_place),
    "step swapped": swap_tensors,
    "step set": set_step,
    "states shared": one_state_for_two,
    "foreign entries": foreign_entries,
    "betas": in_group("betas", (0.9,), (0.9, 0.99), [0.9, 0.8, 0.7], (0.9,) * 4, "ab", (0.9, 1.5, 0.9)),
    "lr": in_group("lr", 0.02, torch.tensor(0.02), np.float64(0.02), -1.0, float("nan"), "x", torch.ones(2)),
    "eps": in_group("eps", 1e-3, None, -1),
    "flags": in_group("maximize", True, "yes", 1),
    "state_dtype": in_group("state_dtype", None, "float32", "bfloat16", "int8", "int4"),
    "param_rounding": in_group("param_rounding", "nearest", "stochastic", "kahan", "split", "up"),
    "option deleted": delete_option,
}  # fmt: skip

# How a gradient may lie in memory; each is of the values g, for the parameter p.
GRADIENTS = {
    "own": lambda g, memory: g,
    "a view": lambda g, memory: memory.copy(g),
    "gaps": lambda g, memory: memory.copy(g, gaps=2),
    "transposed": lambda g, memory: memory.copy(g.t()).t() if g.ndim == 2 else g,
    "negated lazily": lambda g, memory: torch._neg_view(memory.copy(-g)),
    "a parameter": lambda g, memory: torch.nn.Parameter(memory.copy(g)),
    "zero without memory": lambda g, memory: torch._efficientzerotensor(g.shape, dtype=g.dtype),
    "expanded": lambda g, memory: g.flatten()[:1].expand(g.numel()).view(g.shape) if g.numel() else g,
    "sparse": lambda g, memory: g.to_sparse(),
    "none": lambda g, memory: None,
}


def set_gradients(optimizer, memory, kind, seed):
    rng = np.random.default_rng(seed)
    shared = None
    for p in all_params(optimizer):
        g = random(tuple(p.shape), rng, p.dtype)
        p.grad = None if getattr(p, "frozen", False) else GRADIENTS[kind](g, memory)
        if seed % 5 == 0 and shared is not None and p.grad is not None and shared.shape == p.shape:
            p.grad = shared if shared.dtype == p.dtype else p.grad
        shared = p.grad


CASES = [
    (name, kept)
    for name in FUSED
    for kept, (dtype, options) in KEPT.items()
    if can(name, "fused", dtype, options)
]
ROUNDS = st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 999), st.sampled_from(sorted(GRADIENTS)))


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(CASES), st.booleans(), st.booleans(), st.lists(ROUNDS, min_size=1, max_size=4)
)  # fmt: skip
def test_any_change_between_steps(case, clip, take, rounds):
    name, kept = case
    dtype, options = KEPT[kept]
    options = {**options, "max_grad_norm": 1.0 if clip else 0.0}
    if take and adan_optim.CARDS[name].previous:
        options["take_gradients"] = True
    runs = []
    for path in (None, "reference"):
        memory, rng = Memory(), np.random.default_rng(0)
        params = [torch.nn.Parameter(memory.copy(random(shape, rng, dtype))) for shape in SHAPES]
        optimizer = build(name, params, path, **options)
        runs.append((optimizer, memory))
        for seed in (1, 2):  # the second step uses the table of the first
            set_gradients(optimizer, memory, "own", seed)
            optimizer.step()
    for at, (change, n, gradient) in enumerate(rounds):
        failed = []
        for optimizer, memory in runs:
            try:
                CHANGES[change](optimizer, memory, n)
                set_gradients(optimizer, memory, gradient, 3 + at)
                optimizer.step()
            except Exception as error:  # one exception of Python is what is allowed
                failed.append(error)
            memory.check()
        if failed:
            return
        exact = all(p.dtype == torch.float64 for optimizer, _ in runs for p in all_params(optimizer))
        tolerance = 1e-9 if exact else 0.1  # small states round their way; a wrong address is off by far more
        for p, q in zip(*(all_params(optimizer) for optimizer, _ in runs), strict=True):
            np.testing.assert_allclose(
                array(p), array(q), tolerance, tolerance, err_msg=f"{change}, {gradient}"
            )


# ---- single faults, and what is said of them


def trained(name="adan", shapes=((30, 40),), dtype=torch.float32, steps=2, **options):
    params = [torch.nn.Parameter(random(shape, np.random.default_rng(0), dtype)) for shape in shapes]
    optimizer = build(name, params, **options)
    for _ in range(steps):
        give_gradients(optimizer)
        optimizer.step()
    return optimizer


def give_gradients(optimizer):
    for p in all_params(optimizer):
        p.grad = random(tuple(p.shape), np.random.default_rng(1), p.dtype)


INT8 = dict(state_dtype="int8", min_int8_size=0)


@pytest.mark.parametrize("options", [{}, INT8, {"foreach": False}], ids=str)
def test_a_parameter_that_grew_is_named_with_its_states(options):
    optimizer = trained(**options)
    (p,) = all_params(optimizer)
    p.grad = None
    p.data = torch.ones(3000, 40)
    p.grad = torch.ones(3000, 40)
    words = r"parameter 0 of group 0 has shape \(3000, 40\), and its state exp_avg has shape \(30, 40\)"
    with pytest.raises(RuntimeError, match=words):
        optimizer.step()


def test_codes_that_grew_need_scales_that_grew():
    optimizer = trained(shapes=[(300, 40)], **INT8)
    (p,) = all_params(optimizer)
    state = optimizer.state[p]
    p.grad, p.data = None, torch.ones(600, 40)
    for key in ("exp_avg", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad"):
        state[key] = torch.cat([state[key], torch.zeros_like(state[key])])
    give_gradients(optimizer)
    with pytest.raises(RuntimeError, match=r"exp_avg_scale has shape \(47,\), not \(94,\)"):
        optimizer.step()


def test_codes_and_scales_come_together():
    optimizer = trained(shapes=[(300, 40)], **INT8)
    state = optimizer.state[all_params(optimizer)[0]]
    give_gradients(optimizer)
    scale = state.pop("exp_avg_scale")
    with pytest.raises(RuntimeError, match="exp_avg are 8-bit codes without the scales in exp_avg_scale"):
        optimizer.step()
    state |= {"exp_avg_scale": scale, "exp_avg": torch.zeros(300, 40)}
    with pytest.raises(RuntimeError, match=r"exp_avg are torch\.float32, with the scales of 8-bit codes"):
        optimizer.step()


def test_a_state_with_other_strides_is_noticed():
    """At the same address: a square one that is transposed in place."""
    one, two = (trained(shapes=[(4, 4)], foreach=foreach) for foreach in (None, False))
    for optimizer in (one, two):
        optimizer.state[all_params(optimizer)[0]]["exp_avg"].t_()
        give_gradients(optimizer)
        optimizer.step()
    torch.testing.assert_close(all_params(one), all_params(two))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("foreach", [None, True, False])
def test_a_step_count_of_another_type_is_converted(foreach, dtype):
    one, two = (trained(foreach=foreach) for _ in range(2))
    for optimizer, kept in ((one, dtype), (two, torch.float32)):
        state = optimizer.state[all_params(optimizer)[0]]
        state["step"] = torch.tensor(96, dtype=kept)
        give_gradients(optimizer)
        optimizer.step()
        assert (state["step"].item(), state["step"].dtype) == (97, torch.float32)
    assert torch.equal(*all_params(one), *all_params(two))


def test_rows_that_overlap_are_found():
    memory = torch.zeros(40)
    apart = [[memory[:10], memory[10:20]], [memory[20:30]], [torch.zeros(5)]]
    assert overlapping(apart) == set()
    assert overlapping([*apart, [memory[29:31]]]) == {1, 3}
    assert overlapping([[memory[:10], memory[9:12]], [memory[12:]]]) == {0}
    assert overlapping([[memory[0:0]], [memory[0:0]]]) == set()


@pytest.mark.parametrize("foreach", [None, False])
def test_another_type_at_the_same_address_is_noticed(foreach):
    memory = torch.empty(8, dtype=torch.uint8)
    p = torch.nn.Parameter(memory.view(torch.float16))
    optimizer = adan_optim.AdamW([p], lr=0.25, weight_decay=0.0, foreach=foreach, state_dtype="float32")
    for dtype in (torch.float16, torch.bfloat16):
        p.grad, p.data = None, memory.view(dtype)
        with torch.no_grad():
            p.fill_(1)
        for _ in range(2):  # the second with the table of the first
            p.grad = torch.ones(4, dtype=dtype)
            optimizer.step()
        assert p.tolist() == [0.5] * 4


class Loud(torch.Tensor):
    """A tensor with memory of its own that wants to see every operation on it."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        cls.seen = True
        plain = tree_map_only(Loud, lambda x: x.plain, (args, kwargs or {}))
        return func(*plain[0], **plain[1])


def test_a_gradient_that_becomes_a_wrapper_is_asked():
    optimizer = trained(shapes=[(6,)])
    (p,) = all_params(optimizer)
    values = random((6,), np.random.default_rng(7))
    p.grad = torch.Tensor._make_subclass(Loud, values)
    p.grad.plain, Loud.seen = values, False
    optimizer.step()
    assert Loud.seen


@pytest.mark.parametrize("key", ["step", "exp_avg", "neg_pre_grad"])
def test_a_state_with_other_data_is_noticed(key):
    for move in ("share", "data", "set"):
        one, two = (trained(shapes=[(6,), (7,)], foreach=foreach) for foreach in (None, False))
        for optimizer in (one, two):
            x = optimizer.state[all_params(optimizer)[1]][key]
            if move == "share":
                x.share_memory_()
            elif move == "data":
                x.data = torch.ones_like(x)
            else:
                x.set_(torch.ones_like(x))
            give_gradients(optimizer)
            optimizer.step()
        for p, q in zip(all_params(one), all_params(two), strict=True):
            torch.testing.assert_close(p, q)
            assert one.state[p]["step"] == two.state[q]["step"]


@pytest.mark.parametrize(
    "kept", ["f32", "bf16", "f32_int8", "bf16_int8_kahan", "bf16_float32_split", "bf16_bfloat16_stochastic"]
)
@each_fused_name
def test_hostile_defaults_change_nothing(name, kept):
    """torch.set_default_dtype and set_default_device are the user's, and not about our states."""
    dtype, options = KEPT[kept]

    def run():
        optimizer = trained(name, [(30, 40), (70,)], dtype, steps=0, **options)
        grads = [
            [random(tuple(p.shape), np.random.default_rng(t), dtype) for p in all_params(optimizer)]
            for t in range(3)
        ]
        return optimizer, grads

    results = []
    for default, device in ((torch.float32, "cpu"), (torch.float64, "meta"), (torch.bfloat16, "meta")):
        for path in ({}, {"foreach": True}, {"foreach": False}):
            optimizer, grads = run()
            optimizer.foreach = path.get("foreach")
            before = torch.get_default_dtype()
            try:
                torch.set_default_dtype(default)
                with torch.device(device):
                    for step in grads:
                        for p, g in zip(all_params(optimizer), step, strict=True):
                            p.grad = g
                        optimizer.step()
            finally:
                torch.set_default_dtype(before)
            results.append(
                [*all_params(optimizer), *(x for s in optimizer.state.values() for x in s.values())]
            )
    for i, tensors in enumerate(results[3:]):
        for x, y in zip(tensors, results[i % 3], strict=True):
            assert x.dtype == y.dtype
            assert torch.equal(x, y)


def test_scales_that_were_cast_are_float32_again():
    optimizer = trained(shapes=[(300, 40)], **INT8)
    saved = optimizer.state_dict()
    for key, x in saved["state"][0].items():
        saved["state"][0][key] = x.bfloat16() if x.is_floating_point() else x
    optimizer.load_state_dict(saved)
    give_gradients(optimizer)
    optimizer.step()
    state = optimizer.state[all_params(optimizer)[0]]
    assert {x.dtype for key, x in state.items() if key.endswith("_scale") or key == "step"} == {torch.float32}


@pytest.mark.parametrize("foreach", [None, True, False])
@each_fused_name
def test_a_step_between_forward_and_backward_is_an_error(name, foreach):
    p = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = build(name, [p], foreach=foreach)
    versions = []
    for _ in range(3):
        loss = p.square().sum()
        p.grad = torch.ones_like(p)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        names = (*optimizer.card.states, *optimizer.card.small)
        versions.append(max(x._version for key, x in optimizer.state[p].items() if key in names))
    assert versions == sorted(set(versions))


def test_versions_without_torchs_own_function(monkeypatch):
    monkeypatch.setattr(native.load()[0], "torch", None)
    test_a_step_between_forward_and_backward_is_an_error("adan", None)


@pytest.mark.parametrize("name", adan_optim.CARDS)
def test_fake_tensors_step(name):
    with FakeTensorMode():
        model = torch.nn.Linear(4, 4)
        optimizer = build(name, model.parameters())
        for _ in range(2):
            model(torch.randn(2, 4)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert {type(x).__name__ for x in optimizer.state[model.weight].values()} == {"FakeTensor"}


@pytest.mark.parametrize("name", [name for name in FUSED if not adan_optim.CARDS[name].small])
def test_a_wrapper_takes_the_reference_path(name):
    x = random((6, 5), np.random.default_rng(0))
    wrapped, plain = torch.nn.Parameter(TwoTensor(x, x.clone())), torch.nn.Parameter(x.clone())
    one, two = build(name, [wrapped]), build(name, [plain], "reference")
    with pytest.raises(ValueError, match="a TwoTensor is not a plain tensor"):
        build(name, [wrapped], fused=True)
    for _ in range(3):
        g = random((6, 5), np.random.default_rng(1))
        wrapped.grad, plain.grad = TwoTensor(g, g.clone()), g
        one.step()
        two.step()
    torch.testing.assert_close(wrapped.detach().a, plain.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("foreach", [None, True, False])
def test_stochastic_rounding_of_a_strided_parameter_stays_inside(foreach):
    values = random((40, 3), np.random.default_rng(0), torch.bfloat16)
    memory = Memory()
    strided = torch.nn.Parameter(memory.copy(values, gaps=3))
    dense = torch.nn.Parameter(values.clone())
    for p in (strided, dense):
        optimizer = adan_optim.Adan([p], foreach=foreach, param_rounding="stochastic")
        for t in range(3):
            p.grad = random((40, 3), np.random.default_rng(t), torch.bfloat16)
            optimizer.step()
    memory.check()
    if foreach is not None:  # by the same path, to the same bits
        assert torch.equal(strided, dense)


def test_hyper_parameters_are_checked_when_they_change():
    for foreach in (None, False):
        optimizer = trained(foreach=foreach)
        optimizer.param_groups[0]["betas"] = (0.9, 0.99)
        with pytest.raises(
            ValueError, match=r"Adan, parameter group 0: betas=\(0.9, 0.99\): give 3 numbers, not 2"
        ):
            optimizer.step()
        optimizer.param_groups[0]["betas"] = [0.9, 0.9, 0.99]
        optimizer.step()
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.ones(30, 40))])
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"parameter group 0: betas=\(0.9, 0.999\): give 3 numbers, not 2"):
        optimizer.load_state_dict(adamw.state_dict())
    assert str(optimizer.state_dict()) == str(before)


def test_parameters_in_the_same_memory_are_updated_after_each_other():
    """`a.data = b.data` ties two parameters; each has its gradient, and neither update may be lost."""
    for dtype in (torch.float32, torch.bfloat16):
        buffer = torch.ones(100_000, dtype=dtype)
        a, b = torch.nn.Parameter(buffer), torch.nn.Parameter(buffer)
        assert a.data_ptr() == b.data_ptr()
        optimizer = adan_optim.AdamW([a, b], lr=0.25, weight_decay=0.0)
        a.grad = b.grad = torch.ones_like(buffer)
        optimizer.step()
        assert (a == 0.5).all()


@pytest.mark.parametrize("name", ["adan", "adafactor"])
def test_dead_rows_and_columns_stay_finite(name):
    for foreach in (None, True, False):
        p = torch.nn.Parameter(random((6, 5), np.random.default_rng(0)))
        p.grad = random((6, 5), np.random.default_rng(1))
        p.grad[5], p.grad[:, 4] = 0, 0
        build(name, [p], foreach=foreach).step()
        assert p.isfinite().all()


# ---- growing and pruning

ROWS = torch.tensor([4, 0, -1, 2, 2, -1, 9])


@pytest.mark.parametrize(
    "options", [{}, {"take_gradients": True}, INT8, {"state_dtype": "bfloat16"}], ids=str
)
def test_resized_states_are_those_of_their_rows(options):
    optimizer = trained(shapes=[(10, 40), (3,)], **options)
    old, _ = all_params(optimizer)
    values = functools.partial(value_of, optimizer)
    names = adan_optim.CARDS["adan"].states
    before = {name: values(optimizer.state[old], name) for name in names}
    new = torch.nn.Parameter(torch.ones(7, 40))
    adan_optim.resize_state(optimizer, old, new, ROWS)
    assert all_params(optimizer)[0] is new
    assert old not in optimizer.state
    state = optimizer.state[new]
    assert state["step"] == 2
    tolerance = 0.07 if "state_dtype" in options else 0.0
    for name, x in before.items():
        expected = np.where(ROWS.numpy()[:, None] < 0, 0.0, x[ROWS.clamp(min=0)])
        np.testing.assert_allclose(values(state, name), expected, tolerance, tolerance / 100)
    give_gradients(optimizer)
    optimizer.step()
    assert state["step"] == 3
    optimizer.load_state_dict(optimizer.state_dict())


def test_resizing_knows_rows_from_columns():
    """Adafactor's row means follow the rows, its column means stay; also where there are as many of both."""
    optimizer = trained("adafactor", [(10, 10)])
    (old,) = all_params(optimizer)
    state = {key: x.clone() for key, x in optimizer.state[old].items()}
    new = torch.nn.Parameter(torch.ones(7, 10))
    adan_optim.resize_state(optimizer, old, new, ROWS)
    assert torch.equal(optimizer.state[new]["exp_avg_sq_col"], state["exp_avg_sq_col"])
    expected = torch.where(ROWS < 0, 0, state["exp_avg_sq_row"][ROWS.clamp(min=0)])
    assert torch.equal(optimizer.state[new]["exp_avg_sq_row"], expected)
    mini = trained("adam_mini", [(10, 4)])
    (old,) = all_params(mini)
    adan_optim.resize_state(mini, old, new := torch.nn.Parameter(torch.ones(7, 4)), ROWS)
    assert mini.state[new]["exp_avg_sq"].shape == (7,)
    give_gradients(mini)
    mini.step()


@pytest.mark.parametrize(
    ("shape", "rows", "words"),
    [
        ((7, 3), ROWS, "may differ only in the number of rows"),
        ((7, 40), ROWS[:5], r"rows: int64 \[7\] is needed, not torch.int64 \[5\]"),
        ((7, 40), ROWS.float(), "rows: int64"),
        ((7, 40), ROWS + 1, "not 0 to 10"),
    ],
)
def test_resizing_refuses_what_does_not_fit(shape, rows, words):
    optimizer = trained(shapes=[(10, 40)])
    (old,) = all_params(optimizer)
    with pytest.raises(ValueError, match=words):
        adan_optim.resize_state(optimizer, old, torch.nn.Parameter(torch.ones(shape)), rows)
    assert all_params(optimizer)[0] is old
    shampoo = trained("shampoo", [(10, 40)])
    with pytest.raises(ValueError, match="Shampoo's states depend on all rows"):
        adan_optim.resize_state(shampoo, all_params(shampoo)[0], torch.nn.Parameter(torch.ones(7, 40)), ROWS)


def test_meta_tensors_share_no_memory():
    """They have no addresses; a step on them, as estimates of memory make it, keeps its path."""
    optimizer = adan_optim.AdamW([torch.nn.Parameter(torch.empty(3, device="meta")) for _ in range(2)])
    for p in all_params(optimizer):
        p.grad = torch.empty_like(p)
    plan = collect(optimizer)
    assert [(batch.path, len(batch.params)) for batch in plan.batches] == [("foreach", 2)]
