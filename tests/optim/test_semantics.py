"""What a step means around the formula: which parameters it touches, clipping, non-finite gradients,
learning rates, closures, hooks, restarts."""

import math

import numpy as np
import pytest
import torch
from harness import (
    all_params,
    assert_same_bits,
    bits,
    build,
    case_id,
    compare,
    each_case,
    each_kept,
    each_name,
    each_path,
    full_states,
    gradients,
    make_params,
    oracle_of,
    random,
    resync,
    set_grads,
    tensors_of,
)
from oracle import DEFINITIONS
from torch import nn

import adan_optim

pytestmark = pytest.mark.per_family

SHAPES = [(4, 3), (5,), (), (2, 2, 2)]


def train(optimizer, steps, seed=0, gradient=None):
    """Steps on newly allocated gradients that do not depend on the parameters."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        set_grads(all_params(optimizer), rng)
        optimizer.step()
    return optimizer


# ---- each parameter on its own

# Which of the four parameters of a group have a gradient at each step: one is always there, one joins late,
# one leaves and comes back twice, one comes only now and then.
PRESENT = [
    "1011",
    "1010",
    "1010",
    "1100",
    "1100",
    "1101",
    "1111",
    "1111",
    "0000",
    "1111",
    "1011",
    "1110",
    "1111",
]


@each_kept
def test_joining_and_leaving(name, path, dtype, kept):
    """A parameter that joins late, is frozen or comes back behaves as in an optimizer of its own."""
    joining_and_leaving(name, path, dtype, kept, max_grad_norm=0.0)


@each_path
def test_joining_and_leaving_with_a_norm(name, path):
    """Whose computation does not see how states are kept."""
    joining_and_leaving(name, path, torch.float32, {}, max_grad_norm=1e6)


def joining_and_leaving(name, path, dtype, kept, max_grad_norm):
    together = make_params(SHAPES, np.random.default_rng(0), dtype)
    alone = make_params(SHAPES, np.random.default_rng(0), dtype)
    options = {"max_grad_norm": max_grad_norm, **kept, **getattr(DEFINITIONS[name], "ALONE", {})}
    one = build(name, together, path, **options)
    many = [build(name, [p], path, **options) for p in alone]
    rng = np.random.default_rng(1)
    for present in PRESENT:
        for i, (p, q) in enumerate(zip(together, alone, strict=True)):
            p.grad = random(SHAPES[i], rng, dtype) if present[i] == "1" else None
            q.grad = p.grad
            if p.grad is not None:
                many[i].step()
        one.step()
    for i, p in enumerate(together):
        assert one.state[p]["step"] == sum(present[i] == "1" for present in PRESENT)
    assert_same_bits(
        tensors_of(one),
        [x for m in many for x in tensors_of(m)[:1]] + [x for m in many for x in tensors_of(m)[1:]],
    )


@each_path
def test_freezing_by_requires_grad(name, path):
    """A layer frozen in the middle of training stays where it is, without weight decay, and resumes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = build(name, model.parameters(), path)
    counts = []
    for step in range(9):
        model[1].requires_grad_(not 3 <= step < 6)
        before = [p.detach().clone() for p in model[1].parameters()]
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if 3 <= step < 6:
            assert_same_bits(before, model[1].parameters())
        counts.append(int(optimizer.state[model[1].weight]["step"]))
    assert counts == [1, 2, 3, 3, 3, 3, 4, 5, 6]


@each_path
def test_nothing_has_a_gradient(name, path):
    optimizer = build(
        name, make_params(SHAPES, np.random.default_rng(0)), path, max_grad_norm=1.0, nonfinite="raise"
    )
    before = tensors_of(optimizer)
    assert optimizer.step() is None
    assert_same_bits(before, tensors_of(optimizer))


@each_path
def test_a_group_added_in_the_middle(name, path):
    shapes = [(4, 3), (5,), (), (2, 4)]
    params = make_params(shapes, np.random.default_rng(0))
    optimizer = build(name, params[:2], path)
    train(optimizer, 3)
    optimizer.add_param_group({"params": params[2:], "lr": 0.2})
    train(optimizer, 4, seed=1)
    own = make_params(shapes, np.random.default_rng(0))[2:]
    other = build(name, own, path, lr=0.2)
    rng = np.random.default_rng(1)
    for _ in range(4):
        set_grads(make_params(shapes, np.random.default_rng(9))[:2], rng)  # the others' share of the stream
        set_grads(own, rng)
        other.step()
    assert_same_bits(own, params[2:])


# ---- gradients


@each_case
@pytest.mark.parametrize(
    "options",
    [{}, {"max_grad_norm": 0.1}, {"maximize": True}, {"maximize": True, "max_grad_norm": 0.1}],
    ids=str,
)
def test_gradients_stay_as_they_were(name, path, dtype, options):
    optimizer = build(name, make_params(SHAPES, np.random.default_rng(0), dtype), path, **options)
    rng = np.random.default_rng(1)
    for _ in range(3):
        set_grads(all_params(optimizer), rng)
        objects = [p.grad for p in all_params(optimizer)]
        before = [bits(g) for g in objects]
        optimizer.step()
        assert all(p.grad is g for p, g in zip(all_params(optimizer), objects, strict=True))
        assert_same_bits(before, map(bits, objects))


@each_case
def test_maximize_is_minimising_the_negative(name, path, dtype):
    one = build(
        name, make_params(SHAPES, np.random.default_rng(0), dtype), path, maximize=True, max_grad_norm=1.0
    )
    two = build(name, make_params(SHAPES, np.random.default_rng(0), dtype), path, max_grad_norm=1.0)
    rng = np.random.default_rng(1)
    for _ in range(5):
        set_grads(all_params(one), rng)
        for p, q in zip(all_params(one), all_params(two), strict=True):
            q.grad = -p.grad
        one.step()
        two.step()
    assert_same_bits(tensors_of(one), tensors_of(two))


@each_path
def test_clipping_is_over_all_groups_with_the_constructors_eps(name, path):
    """Not the eps of the last group, as in the official code: here they differ by factors."""
    params = make_params(SHAPES, np.random.default_rng(0))
    groups = [{"params": params[:2], "eps": 1e-8}, {"params": params[2:], "eps": 4.0}]
    optimizer = build(name, groups, path, eps=1.0, max_grad_norm=0.9)
    oracle = oracle_of(optimizer)
    rng = np.random.default_rng(1)
    for _ in range(4):
        set_grads(params, rng)
        resync(oracle, optimizer)
        oracle.step(gradients(optimizer))
        optimizer.step()
        compare(oracle, optimizer)


@each_path
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=case_id)
def test_squares_do_not_overflow(name, path, dtype):
    """Four float16 gradients of 300: their squares are beyond float16."""
    p = torch.ones(4, dtype=dtype, requires_grad=True)
    optimizer = build(name, [p], path, max_grad_norm=1.0, eps=0.5)
    oracle = oracle_of(optimizer)
    for _ in range(3):
        p.grad = torch.full_like(p, 300)
        resync(oracle, optimizer)
        oracle.step(gradients(optimizer))
        optimizer.step()
        compare(oracle, optimizer)


@each_path
def test_mixed_dtypes_in_one_group(name, path):
    """Clipped together; each is computed and kept in its own type."""
    rng = np.random.default_rng(0)
    params = [
        random(SHAPES[0], rng, dtype).requires_grad_()
        for dtype in (*adan_optim.CARDS[name].dtypes, torch.float32)
    ]
    optimizer = build(name, params, path, max_grad_norm=1.0)
    oracle = oracle_of(optimizer)
    for _ in range(4):
        set_grads(params, rng)
        resync(oracle, optimizer)
        oracle.step(gradients(optimizer))
        optimizer.step()
        compare(oracle, optimizer)
    for p in params:
        assert all(optimizer.state[p][key].dtype == p.dtype for key in full_states(optimizer, p))


# ---- non-finite gradients

NONFINITE = [float("nan"), float("inf"), -float("inf")]


@each_path
@pytest.mark.parametrize("bad", NONFINITE)
@pytest.mark.parametrize("policy", ["skip", "raise"])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_skip_and_raise_change_nothing(name, path, bad, policy, max_grad_norm):
    """Parameters, states and step counts are as without that step: first, in the middle, twice in a row."""

    def run(bad_steps, nonfinite):
        optimizer = build(
            name,
            make_params(SHAPES, np.random.default_rng(0)),
            path,
            nonfinite=nonfinite,
            max_grad_norm=max_grad_norm,
        )
        rng = np.random.default_rng(1)
        for step in range(6):
            if step in bad_steps:
                params = all_params(optimizer)
                set_grads(params, np.random.default_rng(2))
                params[1].grad[3] = bad
                before = tensors_of(optimizer)[: len(params)]
                if policy == "raise":
                    with pytest.raises(FloatingPointError, match="nothing was changed"):
                        optimizer.step()
                else:
                    optimizer.step()
                assert_same_bits(before, params)
            else:
                set_grads(all_params(optimizer), rng)
                optimizer.step()
        return tensors_of(optimizer)

    kept = run((0, 3, 4), policy)
    optimizer = build(name, make_params(SHAPES, np.random.default_rng(0)), path, max_grad_norm=max_grad_norm)
    assert_same_bits(kept, tensors_of(train(optimizer, 3, seed=1)))


@each_path
@pytest.mark.parametrize("bad", NONFINITE)
def test_propagate_computes_with_them(name, path, bad):
    """The element or its state becomes NaN or inf, the others, of an elementwise rule, what they would.

    A NaN reaches the element itself, where people look.
    """
    one, two = (build(name, make_params(SHAPES, np.random.default_rng(0)), path) for _ in range(2))
    train(one, 2)
    train(two, 2)
    for optimizer in (one, two):
        set_grads(all_params(optimizer), np.random.default_rng(1))
    all_params(one)[1].grad[3] = bad
    one.step()
    two.step()
    p, q = all_params(one)[1], all_params(two)[1]
    assert not all(x[3].isfinite() for x in (p, *(one.state[p][key] for key in full_states(one, p))))
    assert p[3].isnan() or not math.isnan(bad)
    assert one.state[p]["step"] == 3
    with torch.no_grad():
        p[3 if one.card.elementwise else ...] = q[3 if one.card.elementwise else ...]
    assert_same_bits(all_params(one), all_params(two))


@each_path
def test_raise_names_the_norm(name, path):
    optimizer = build(name, make_params(SHAPES, np.random.default_rng(0)), path, nonfinite="raise")
    set_grads(all_params(optimizer), np.random.default_rng(1))
    all_params(optimizer)[0].grad[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="norm of the gradients is nan"):
        optimizer.step()


# ---- learning rates


@each_path
def test_learning_rate_follows_the_group(name, path):
    """Set in param_groups, by a scheduler, or in place in a tensor: the next step takes it."""

    def run(lr, change):
        optimizer = build(name, make_params(SHAPES, np.random.default_rng(0)), path, lr=lr)
        rng = np.random.default_rng(1)
        for step in range(6):
            change(optimizer, step)
            set_grads(all_params(optimizer), rng)
            optimizer.step()
        return tensors_of(optimizer)

    def by_group(optimizer, step):
        optimizer.param_groups[0]["lr"] = 0.5 / 2**step

    def in_place(optimizer, step):
        optimizer.param_groups[0]["lr"].fill_(0.5 / 2**step)

    def by_scheduler(optimizer, step):
        if step == 0:
            optimizer.scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        else:
            optimizer.scheduler.step()

    expected = run(0.5, by_group)
    assert_same_bits(expected, run(torch.tensor(0.5), in_place))
    assert_same_bits(expected, run(torch.tensor([0.5]), in_place))
    assert_same_bits(expected, run(0.5, by_scheduler))
    assert_same_bits(expected, run(torch.tensor(0.5), by_scheduler))
    assert any(not torch.equal(x, y) for x, y in zip(expected, run(0.5, lambda *_: None), strict=True))


@each_path
def test_hyper_parameters_follow_the_group(name, path):
    """betas, eps, weight_decay and the flags, changed between steps."""
    optimizer = build(name, make_params(SHAPES, np.random.default_rng(0)), path)
    oracle = oracle_of(optimizer)
    rng = np.random.default_rng(1)
    group = optimizer.param_groups[0]
    changes = [{}, {"eps": 0.7}, {"weight_decay": 1.0}, {"maximize": True}]
    if "betas" in group:
        changes.append({"betas": tuple(0.9 - 0.1 * i for i in range(len(group["betas"])))})
    if "no_prox" in group:
        changes.append({"no_prox": True})
    for change in changes:
        group.update(change)
        oracle = oracle_of(optimizer)
        set_grads(all_params(optimizer), rng)
        oracle.step(gradients(optimizer))
        optimizer.step()
        compare(oracle, optimizer)


# ---- the rest of torch's interface


@each_path
def test_closure(name, path):
    """Called once, with gradients enabled, before the step; its value is returned."""
    one, two = (build(name, make_params(SHAPES[:1], np.random.default_rng(0)), path) for _ in range(2))
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        calls.append(1)
        one.zero_grad()
        loss = all_params(one)[0].pow(3).sum()
        loss.backward()
        return loss

    for step in range(4):
        with torch.no_grad():
            loss = one.step(closure)
        p = all_params(two)[0]
        assert loss.item() == p.detach().pow(3).sum().item()
        p.grad = None
        p.pow(3).sum().backward()
        two.step()
        assert len(calls) == step + 1
    assert_same_bits(tensors_of(one), tensors_of(two))


@each_path
def test_hooks(name, path):
    """Pre-hooks run before and may change gradients; post-hooks run after; once per step."""
    one, two = (build(name, make_params(SHAPES, np.random.default_rng(0)), path) for _ in range(2))
    seen = []

    def halve(optimizer, args, kwargs):
        seen.append("pre")
        for p in all_params(optimizer):
            p.grad = p.grad / 2

    one.register_step_pre_hook(halve)
    one.register_step_post_hook(lambda optimizer, args, kwargs: seen.append("post"))
    rng = np.random.default_rng(1)
    for _ in range(3):
        set_grads(all_params(one), rng)
        for p, q in zip(all_params(one), all_params(two), strict=True):
            q.grad = p.grad / 2
        one.step()
        two.step()
    assert seen == ["pre", "post"] * 3
    assert_same_bits(tensors_of(one), tensors_of(two))


def test_hooks_of_all_optimizers():
    """torch's global hooks, which are set after the optimizer was made, and removed."""
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    optimizer = train(build("adan", make_params(SHAPES, np.random.default_rng(0)), None), 1)
    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda o, args, kwargs: seen.append((o, args, kwargs))),
        register_optimizer_step_post_hook(lambda o, args, kwargs: seen.append((o, args, kwargs))),
    ]
    try:
        optimizer.step()
        optimizer.step(closure=lambda: 3.0)
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert [(o is optimizer, args[1:], list(kwargs)) for o, args, kwargs in seen] == [
        *[(True, (), [])] * 2,
        *[(True, (), ["closure"])] * 2,
    ]


def test_a_subclass_with_a_step_of_its_own():
    """Its hooks see it, whether its step calls ours or not."""

    class Own(adan_optim.Adan):
        def step(self, closure=None):
            return "own"

    optimizer = Own(make_params(SHAPES, np.random.default_rng(0)))
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    assert optimizer.step() == "own"
    assert seen == ["post"]


def test_the_name_in_a_profile():
    """As torch's optimizers have it, once a step, with hooks and without."""
    optimizer = train(build("adan", make_params(SHAPES, np.random.default_rng(0)), None), 1)
    for hooks in range(2):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            optimizer.step()
            optimizer.step()
        names = [event.name for event in seen.events()]
        assert names.count("Optimizer.step#Adan.step") == 2, hooks
        optimizer.register_step_pre_hook(lambda *_: None)


@each_path
def test_the_state_dict_cleared(name, path):
    """optimizer.state.clear() starts over."""
    one = build(name, make_params(SHAPES, np.random.default_rng(0)), path)
    train(one, 3)
    two = build(name, [p.detach().clone().requires_grad_() for p in all_params(one)], path)
    one.state.clear()
    assert_same_bits(tensors_of(train(one, 3, seed=5)), tensors_of(train(two, 3, seed=5)))


@pytest.mark.parametrize("path", adan_optim.CARDS["adan"].paths)
def test_restart(path):
    """After restart_opt() everything is as for a new optimizer on the same parameters."""
    one = build("adan", make_params(SHAPES, np.random.default_rng(0)), path)
    one.restart_opt()  # before there is anything
    train(one, 4)
    two = build("adan", [p.detach().clone().requires_grad_() for p in all_params(one)], path)
    one.restart_opt()
    assert_same_bits(tensors_of(train(one, 4, seed=5)), tensors_of(train(two, 4, seed=5)))


def test_a_restart_keeps_what_was_rounded_off_the_parameter():
    """Kahan's compensation is a part of the parameter; everything else is zero, in 8 bits too."""
    options = dict(param_rounding="kahan", state_dtype="int8", min_int8_size=0)
    optimizer = build("adan", make_params(SHAPES, np.random.default_rng(0), torch.bfloat16), **options)
    train(optimizer, 3)
    kept = [state["compensation"].clone() for state in optimizer.state.values()]
    assert any(x.any() for x in kept)
    optimizer.restart_opt()
    assert_same_bits(kept, [state.pop("compensation") for state in optimizer.state.values()])
    assert not any(x.any() for state in optimizer.state.values() for x in state.values())


@each_name
def test_sparse_gradients_are_refused(name):
    layer = nn.Embedding(5, 3, sparse=True)
    optimizer = build(name, layer.parameters())
    before = layer.weight.detach().clone()
    layer(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match=r"sparse gradients .*sparse=False"):
        optimizer.step()
    assert torch.equal(before, layer.weight)
