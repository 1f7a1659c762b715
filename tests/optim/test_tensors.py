"""Memory: layouts of parameters and gradients, and tensors that are replaced, moved, cast or freed between
steps. The fused path keeps addresses from step to step, so each of these must be noticed.

Most tests train twins, in float64: one on the path under test with something done to it between the steps,
one on the reference path, which looks at everything again each time.
"""

import math
import weakref

import numpy as np
import pytest
import torch
from harness import (
    all_params,
    array,
    build,
    can,
    case_id,
    compare,
    each_fused_name,
    each_path,
    full_states,
    gradients,
    oracle_of,
    random,
    resync,
)
from torch import nn

import adan_optim
from adan_optim.card import STATE_BYTES
from adan_optim.engine import native

pytestmark = pytest.mark.per_family

SHAPES = [(3, 4), (6,), (2, 3, 4, 5), (), (3, 4)]
CHANNELS_LAST = torch.channels_last


def make(shapes, dtype=torch.float64):
    rng = np.random.default_rng(0)
    return [random(shape, rng, dtype).requires_grad_() for shape in shapes]


def for_any_layout(name, path):
    """The path; None, which may fall back, for a rule that cares how a tensor lies in memory."""
    return path if adan_optim.CARDS[name].elementwise or path != "fused" else None


def twins(name, path, shapes=SHAPES, **options):
    return build(name, make(shapes), path, **options), build(name, make(shapes), "reference", **options)


def same_step(one, two, rng):
    """A step of both on the same, newly allocated gradients."""
    for p, q in zip(all_params(one), all_params(two), strict=True):
        p.grad = random(tuple(p.shape), rng, p.dtype)
        q.grad = p.grad.clone()
    one.step()
    two.step()


def assert_twins(one, two, tolerance=1e-12):
    for p, q in zip(all_params(one), all_params(two), strict=True):
        if not torch.allclose(p, q, tolerance, tolerance):
            np.testing.assert_allclose(array(p), array(q), tolerance, tolerance)
        for key, x in one.state[p].items():
            y = two.state[q][key]
            if x.shape != y.shape or not torch.allclose(x, y, tolerance, tolerance):  # slow, but tells where
                np.testing.assert_allclose(array(x), array(y), tolerance, tolerance, err_msg=key)


# ---- layouts

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=CHANNELS_LAST),
    "permuted": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "one channel": lambda x: x[:, :1].contiguous(memory_format=CHANNELS_LAST),
    "offset": lambda x: torch.cat([x.flatten(), x.flatten()])[3 : 3 + x.numel()].view(x.shape),
    "gaps": lambda x: torch.stack([x, x], -1)[..., 0],
    "expanded": lambda x: x[:1, :1].expand(x.shape),
}
DENSE = [key for key in LAYOUTS if key not in ("gaps", "expanded")]


@each_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=case_id)
@pytest.mark.parametrize("of_param", [*DENSE, "gaps"])
def test_layouts(name, path, dtype, of_param):
    """Any layout of the parameter with any layout of the gradient, which changes from step to step."""
    for of_grad in [key for key in LAYOUTS if key != "one channel"]:
        train_with_layouts(name, path, dtype, of_param, of_grad)


def train_with_layouts(name, path, dtype, of_param, of_grad):
    rng = np.random.default_rng(0)
    p = LAYOUTS[of_param](random((2, 3, 4, 5), rng, dtype)).detach().requires_grad_()
    if path == "fused" and of_param == "gaps" and adan_optim.CARDS[name].elementwise:
        with pytest.raises(ValueError, match=r"does not fill its memory; make it \.contiguous\(\)"):
            build(name, [p], path)
    path = None if of_param == "gaps" and path == "fused" else path
    optimizer = build(name, [p], for_any_layout(name, path))
    oracle = oracle_of(optimizer)
    for step in range(4):
        g = random(tuple(p.shape), rng, dtype)
        p.grad = LAYOUTS[of_grad](g) if step % 2 else g
        resync(oracle, optimizer)
        oracle.step(gradients(optimizer))
        optimizer.step()
        compare(oracle, optimizer)
    if of_param != "gaps":
        assert all(optimizer.state[p][key].stride() == p.stride() for key in full_states(optimizer, p))


@each_path
def test_a_channels_last_model(name, path):
    """Real gradients of a convolutional network in channels_last."""

    def run(path, memory_format):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(18, 2)
        )
        model = model.double().to(memory_format=memory_format)
        optimizer = build(name, model.parameters(), path, max_grad_norm=0.5)
        for _ in range(4):
            x = torch.randn(2, 3, 5, 5, dtype=torch.float64).to(memory_format=memory_format)
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        return [p.detach().clone() for p in model.parameters()]

    for x, y in zip(run(path, CHANNELS_LAST), run("reference", torch.contiguous_format), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


# ---- gradients that come and go


def fresh(p, g, keep):
    p.grad = g


def fresh_and_keep_the_old(p, g, keep):
    keep.append(p.grad)
    p.grad = g


def in_place(p, g, keep):
    if p.grad is None:
        p.grad = g
    else:
        p.grad.copy_(g)


def through_data(p, g, keep):
    if p.grad is None:
        p.grad = g
    else:
        p.grad.data = g


def in_a_flat_buffer(p, g, keep):
    buffer = torch.cat([torch.zeros(1, dtype=g.dtype), g.flatten()])
    keep.append(buffer)
    p.grad = buffer[1:].view(g.shape)


@each_path
@pytest.mark.parametrize("give", [fresh, fresh_and_keep_the_old, in_place, through_data, in_a_flat_buffer])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}], ids=str)
def test_never_a_stale_gradient(name, path, give, set_to_none, options):
    one, two = twins(name, path, **options)
    rng, keep = np.random.default_rng(1), []
    for _ in range(5):
        for p, q in zip(all_params(one), all_params(two), strict=True):
            g = random(tuple(p.shape), rng, p.dtype)
            q.grad = g.clone()
            give(p, g, keep)
        one.step()
        two.step()
        one.zero_grad(set_to_none=set_to_none)
        assert_twins(one, two)


@each_path
def test_gradients_exchanged_between_parameters(name, path):
    one, two = twins(name, path, [(3, 4)] * 4)
    rng = np.random.default_rng(1)
    for _ in range(5):
        same_step(one, two, rng)
        for optimizer in (one, two):
            p = all_params(optimizer)
            p[0].grad, p[1].grad, p[2].grad, p[3].grad = p[3].grad, p[0].grad, None, p[1].grad
            optimizer.step()
        assert_twins(one, two)


@each_path
def test_steps_hold_no_gradients(name, path):
    """zero_grad() gives the memory back although the fused path keeps a table of addresses."""
    one, two = twins(name, path)
    for _ in range(3):
        same_step(one, two, np.random.default_rng(1))
        gone = [weakref.ref(p.grad) for p in all_params(one)]
        one.zero_grad()
        assert all(ref() is None for ref in gone)


# ---- parameters and states that are replaced


def new_data(p, optimizer):
    p.data = p.data.clone()


def new_data_with_other_values(p, optimizer):
    p.data = p.data * 2 + 1


def to_channels_last(p, optimizer):
    if p.ndim == 4:
        p.data = p.data.contiguous(memory_format=CHANNELS_LAST)


def transposed_in_memory(p, optimizer):
    if p.ndim == 2:
        p.data = p.data.t().contiguous().t()


def state_replaced(p, optimizer):
    for key, x in list(optimizer.state[p].items()):
        optimizer.state[p][key] = x.clone()


def state_dict_replaced(p, optimizer):
    optimizer.state[p] = {key: x.clone() for key, x in optimizer.state[p].items()}


def state_moved(p, optimizer):
    for x in optimizer.state[p].values():
        x.data = x.data.clone()


def state_changed_in_place(p, optimizer):
    optimizer.state[p][list(optimizer.state[p])[-1]].mul_(0.5)
    optimizer.state[p]["step"].add_(3)


def one_state_replaced(p, optimizer):
    if p.ndim == 1:
        key = list(optimizer.state[p])[-1]
        optimizer.state[p][key] = optimizer.state[p][key] * 2


def step_count_replaced(p, optimizer):
    optimizer.state[p]["step"] = optimizer.state[p]["step"] + 5


def a_state_removed(p, optimizer):
    if p.ndim == 1:
        del optimizer.state[p]


def keys_in_another_order(p, optimizer):
    state = optimizer.state[p]
    for key in sorted(state, reverse=True):
        state[key] = state.pop(key)


def everything_moved(p, optimizer):
    new_data(p, optimizer)
    state_moved(p, optimizer)


def load_own_state(p, optimizer):
    optimizer.load_state_dict(optimizer.state_dict())


REPLACE = [
    new_data, new_data_with_other_values, to_channels_last, transposed_in_memory,
    state_replaced, state_dict_replaced, state_moved,
    state_changed_in_place, one_state_replaced, step_count_replaced, a_state_removed, keys_in_another_order,
    everything_moved, load_own_state,
]  # fmt: skip


@each_path
@pytest.mark.parametrize("replace", REPLACE)
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}], ids=str)
def test_tensors_replaced_between_steps(name, path, replace, options):
    one, two = twins(name, for_any_layout(name, path), **options)
    rng = np.random.default_rng(1)
    for step in range(6):
        same_step(one, two, rng)
        assert_twins(one, two)
        if step in (0, 3, 4):
            for optimizer in (one, two):
                for p in all_params(optimizer):
                    replace(p, optimizer)


@each_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=case_id)
def test_a_model_cast_in_the_middle(name, path, dtype):
    """model.to(dtype): the states follow, and go on in the new type."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    optimizer = build(name, model.parameters(), path if can(name, path, dtype) else None)
    rng = np.random.default_rng(1)
    oracle = oracle_of(optimizer)
    for step in range(6):
        if step == 3:
            model.to(dtype)
        for p in model.parameters():
            p.grad = random(tuple(p.shape), rng, p.dtype)
        if step == 3:
            for p in model.parameters():
                for key in full_states(optimizer, p):
                    optimizer.state[p][key].copy_(optimizer.state[p][key].to(dtype))
        resync(oracle, optimizer)
        oracle.step(gradients(optimizer))
        optimizer.step()
        compare(oracle, optimizer)
    for p in model.parameters():
        assert all(optimizer.state[p][key].dtype == dtype for key in full_states(optimizer, p))


# ---- groups that are edited


def replace_a_parameter(optimizer):
    group = optimizer.param_groups[0]
    old = group["params"][1]
    group["params"][1] = (old.detach() + 1).requires_grad_()


def remove_the_last_group(optimizer):
    optimizer.param_groups.pop()


def remove_a_parameter(optimizer):
    optimizer.param_groups[0]["params"].pop(0)


def append_a_parameter(optimizer):
    optimizer.param_groups[0]["params"].append(torch.ones(4, dtype=torch.float64, requires_grad=True))


def move_a_parameter(optimizer):
    groups = optimizer.param_groups
    groups[1]["params"].append(groups[0]["params"].pop())


def replace_a_group(optimizer):
    optimizer.param_groups[1] = {**optimizer.param_groups[1], "lr": 0.3}


EDITS = [
    replace_a_parameter, remove_the_last_group, remove_a_parameter, append_a_parameter, move_a_parameter,
    replace_a_group,
]  # fmt: skip


@each_path
@pytest.mark.parametrize("edit", EDITS)
def test_groups_edited_between_steps(name, path, edit):
    """param_groups is public: parameters and groups come and go through it."""

    def run(path):
        params = make(SHAPES)
        groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.01, "weight_decay": 0.7}]
        optimizer = build(name, groups, path)
        rng, seen = np.random.default_rng(1), {}
        for step in range(6):
            if step == 3:
                edit(optimizer)
            for p in all_params(optimizer):
                seen[id(p)] = p
            for p in seen.values():
                p.grad = random(tuple(p.shape), rng, p.dtype)
            optimizer.step()
        return [array(p) for p in seen.values()]

    for x, y in zip(run(path), run("reference"), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


@each_path
def test_two_optimizers_do_not_share_anything(name, path):
    """Steps of one, taken in turns, leave the other alone; the kernels keep scratch memory per thread."""
    one, two = twins(name, path)
    three, four = twins(name, path, [(7,), (100,)], lr=0.5)
    rng = np.random.default_rng(1)
    for _ in range(4):
        same_step(one, two, rng)
        same_step(three, four, rng)
    assert_twins(one, two)
    assert_twins(three, four)


@each_path
def test_a_parameter_transposed_where_it_is(name, path):
    """Its address stays, and its gradients follow its new strides; the states must, too."""
    one, two = twins(name, for_any_layout(name, path), [(4, 4)])
    rng = np.random.default_rng(1)
    for step in range(6):
        g = random((4, 4), rng, torch.float64)
        for optimizer in (one, two):
            (p,) = all_params(optimizer)
            if step in (2, 4):
                p.data = p.data.t()
            p.grad = torch.empty_like(p).copy_(g)
            optimizer.step()
        assert_twins(one, two)


@each_fused_name
def test_the_table_of_addresses_is_made_once(name, monkeypatch):
    """In steady training, with new gradients at every step; and again when a parameter joins."""
    made, init = [], native.CpuTable.__init__
    monkeypatch.setattr(native.CpuTable, "__init__", lambda *args: made.append(1) or init(*args))
    optimizer = build(name, make([(3, 4), (6,), (24, 5), (), (3, 4)]), "fused", max_grad_norm=1.0)
    group = optimizer.param_groups[0]  # a table for each pass over tensors with the same states
    kinds = {spec.full: spec for spec in (optimizer.state_spec(p, group) for p in group["params"])}
    tables = sum(len(optimizer.fused_rules(spec)) for spec in kinds.values())
    rng = np.random.default_rng(1)
    for step in range(8):
        for p in all_params(optimizer)[step < 4 :]:
            p.grad = random(tuple(p.shape), rng, p.dtype)
        optimizer.step()
        optimizer.zero_grad()
        assert len(made) == tables * (1 if step < 4 else 2)


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
def test_states_cost_what_the_card_says(state_dtype):
    for name, card in adan_optim.CARDS.items():
        p = torch.ones((64, 80), requires_grad=True)
        optimizer = build(name, [p], state_dtype=state_dtype)
        p.grad = torch.ones_like(p)
        optimizer.step()
        taken = adan_optim.state_bytes(optimizer)
        assert taken.pop("step") == 4
        spec = optimizer.state_spec(p, optimizer.param_groups[0])
        for key, shape in spec.small:
            assert taken.pop(key) == 4 * math.prod(shape)
        coded = set(spec.full) - {*card.iterates} if state_dtype == "int8" else ()
        scales = [f"{key}_scale" for key in coded]
        assert set(taken) == {*spec.full, *scales}
        optional = sum(key in card.optional for key in spec.full) * STATE_BYTES[state_dtype]
        assert sum(taken.values()) == 5120 * (card.state_bytes(state_dtype) + optional)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no such gradients")
@pytest.mark.parametrize("fused", [None, True])
def test_gradient_of_another_dtype_is_not_rounded(fused):
    p = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    p.grad_dtype = None
    p.grad = torch.full((8,), 1 + 2.0**-12)  # bfloat16 would make it 1
    optimizer = adan_optim.Adan([p], fused=fused)
    if fused:
        with pytest.raises(RuntimeError, match=r"a gradient is torch.float32, its parameter torch.bfloat16"):
            optimizer.step()
    else:
        optimizer.step()
        reference = adan_optim.Adan([q := p.detach().clone().fill_(1).requires_grad_()], foreach=False)
        q.grad_dtype = None
        q.grad = p.grad
        reference.step()
        for name in adan_optim.CARDS["adan"].states:
            assert torch.equal(optimizer.state[p][name], reference.state[q][name])
